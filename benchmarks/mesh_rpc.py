"""What remote calls cost over a bare link: latency of a call, tokens a second of a stream.

    python benchmarks/mesh_rpc.py --transport tls iroh

Two processes on this machine's loopback, one run. Bare: the same frames through `Link.send` and
`Link.receive` of the same transport, one frame for each token, nothing else. Calls: `Peers.call`
and `Peers.stream`, with certificates checked, credits, deadlines and signs of life. The paced
stream gives a token every 20 ms; its delay is from the moment at which the handler yields it to
the moment at which the reader has it (one clock, the machine's).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from tinkex._clock import SystemClock
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.rpc.service import Call, Service, callable_by
from tinkex.mesh.transport.base import Contact, Link, Transport
from tinkex.mesh.trust.certificates import Chain, make_certificate, make_grant

DAY_S = 86_400.0
ROOT, AUTH, SERVER, CLIENT = (KeyPair(bytes([n]) * 32) for n in (1, 2, 3, 4))
PACE_S = 0.02


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request of about 200 bytes."""

    text: str
    tokens: int = 0
    pace_s: float = 0.0


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """A token as the mesh sends it, and when it was made."""

    index: int
    text: str
    token: int
    logprob: float
    at: float


def piece(index: int) -> Piece:
    return Piece(0, " token", 12345 + index % 1000, -1.2345678, time.monotonic())


class Bench(Service):
    """What is called."""

    service = "bench"

    @callable_by(CERTIFIED)
    async def rpc_ask(self, request: Question, call: Call) -> Question:  # noqa: ARG002
        """Answer with the same."""
        return request

    @callable_by(CERTIFIED)
    async def rpc_tokens(self, request: Question, call: Call) -> AsyncIterator[Piece]:  # noqa: ARG002
        """Give tokens, one at a time as an engine does, or at a pace."""
        for index in range(request.tokens):
            await asyncio.sleep(request.pace_s)
            yield piece(index)


def make_transport(kind: str, key_pair: KeyPair) -> Transport:
    clock = SystemClock()
    if kind == "tls":
        from tinkex.mesh.transport.tls import TlsTransport

        return TlsTransport(key_pair, bind=("127.0.0.1:0",), clock=clock)
    from tinkex.mesh.transport.iroh import IrohTransport

    return IrohTransport(key_pair, bind=("127.0.0.1:0", "[::1]:0"), clock=clock)


def credentials(key_pair: KeyPair, role: Role) -> Credentials:
    """Certify a peer as its network would: root, auth worker, member."""
    now = SystemClock().now()
    network = ROOT.peer_id

    def grant(role: Role) -> Any:
        return make_grant(
            ROOT,
            network=network,
            key=KeyPair.generate().peer_id,
            role=role,
            join_before=now + DAY_S,
            certificate_s=DAY_S,
        )

    times = {"not_before": now, "expires_at": now + DAY_S}
    auth = make_certificate(ROOT, grant=grant(Role.AUTH), peer=AUTH.peer_id, issuer=None, **times)
    chain = msgspec.msgpack.decode(auth, type=Chain)
    own = make_certificate(AUTH, grant=grant(role), peer=key_pair.peer_id, issuer=chain, **times)
    return Credentials(key_pair, network, frozenset({network}), own)


# --- the other process ------------------------------------------------------------


async def serve(kind: str, *, bare: bool) -> None:
    """Answer until the parent closes our standard input."""
    transport = make_transport(kind, SERVER)
    peers = Peers(transport, credentials(SERVER, Role.PROCESSOR), clock=SystemClock())
    if bare:
        await transport.start()
        work = asyncio.create_task(echo(transport))
    else:
        peers.serve(Bench())
        await peers.start()
    print(json.dumps(transport.contact.addresses), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    if bare:
        work.cancel()
        await transport.stop()
    else:
        await peers.stop()


async def echo(transport: Transport) -> None:
    """Send back every frame; one that begins with `T` asks for so many tokens, a frame each."""
    link = await transport.accept()
    while True:
        frame = await link.receive()
        if frame[:1] == b"T":
            for index in range(int(frame[1:])):
                await link.send(msgspec.msgpack.encode(piece(index)))
        else:
            await link.send(frame)


class Server:
    """The other process."""

    def __init__(self, kind: str, *, bare: bool) -> None:
        self._command = [sys.executable, __file__, "--serve", kind] + ["--bare"] * bare

    def __enter__(self) -> Contact:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        return Contact(SERVER.peer_id, tuple(json.loads(self._process.stdout.readline())))

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)


# --- this process -----------------------------------------------------------------


async def timed(work: Callable[[], Awaitable[Any]], count: int) -> list[float]:
    """Milliseconds of each of `count` times, one after the other."""
    for _ in range(50):
        await work()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await work()
        times.append(1e3 * (time.perf_counter() - began))
    return times


async def measure_bare(kind: str, calls: int, tokens: int) -> dict[str, float]:
    transport = make_transport(kind, CLIENT)
    await transport.start()
    with Server(kind, bare=True) as contact:
        link = await transport.dial(contact)
        frame = msgspec.msgpack.encode(Question("x" * 180))

        async def ask() -> None:
            await link.send(frame)
            msgspec.msgpack.decode(await link.receive(), type=Question)

        times = await timed(ask, calls)
        together = await rate(lambda n: volley(link, frame, n), calls)
        began = time.perf_counter()
        await link.send(b"T%d" % tokens)
        for _ in range(tokens):
            msgspec.msgpack.decode(await link.receive(), type=Piece)
        seconds = time.perf_counter() - began
    await transport.stop()
    return figures(times, together, tokens / seconds)


async def volley(link: Link, frame: bytes, count: int) -> None:
    """Keep 32 frames on their way."""
    for _ in range(32):
        await link.send(frame)
    for n in range(count):
        await link.receive()
        if n < count - 32:
            await link.send(frame)


async def rate(work: Callable[[int], Awaitable[Any]], count: int) -> float:
    began = time.perf_counter()
    await work(count)
    return count / (time.perf_counter() - began)


async def measure_calls(kind: str, calls: int, tokens: int) -> dict[str, float]:
    peers = Peers(
        make_transport(kind, CLIENT), credentials(CLIENT, Role.GATEWAY), clock=SystemClock()
    )
    await peers.start()
    with Server(kind, bare=False) as contact:
        question = Question("x" * 180)

        async def ask() -> None:
            await peers.call(contact, Bench.rpc_ask, question, timeout_s=10)

        async def many(count: int) -> None:
            async def some() -> None:
                for _ in range(count // 32):
                    await ask()

            await asyncio.gather(*(some() for _ in range(32)))

        times = await timed(ask, calls)
        together = await rate(many, calls)
        began = time.perf_counter()
        count = 0
        async for _ in peers.stream(contact, Bench.rpc_tokens, Question("", tokens), timeout_s=600):
            count += 1
        assert count == tokens
        seconds = time.perf_counter() - began
        delays = [
            1e3 * (time.monotonic() - reply.at)
            async for reply in peers.stream(
                contact, Bench.rpc_tokens, Question("", 100, PACE_S), timeout_s=600
            )
        ]
    await peers.stop()
    return figures(times, together, tokens / seconds) | {
        "paced token, delay p50, ms": statistics.median(delays),
        "paced token, delay max, ms": max(delays),
    }


def figures(times: list[float], together: float, tokens: float) -> dict[str, float]:
    times.sort()
    return {
        "call p50, ms": statistics.median(times),
        "call p99, ms": times[int(0.99 * len(times))],
        "calls a second, 32 at once": together,
        "stream, tokens a second": tokens,
    }


def main() -> None:
    """Print the figures of one run as tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--transport", nargs="+", default=["tls", "iroh"])
    parser.add_argument("--calls", type=int, default=3200)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, bare=options.bare))
        return
    for kind in options.transport:
        bare = asyncio.run(measure_bare(kind, options.calls, options.tokens))
        calls = asyncio.run(measure_calls(kind, options.calls, options.tokens))
        print(f"| {kind} | bare link | calls | ratio |")
        print("|---|---|---|---|")
        for name, value in calls.items():
            floor = bare.get(name)
            ratio = "" if floor is None else f"{value / floor:.2f}"
            print(f"| {name} | {'' if floor is None else f'{floor:.3g}'} | {value:.3g} | {ratio} |")
        print()


if __name__ == "__main__":
    main()
