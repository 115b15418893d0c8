"""The mesh's transports side by side: round trips, frames and bytes a second, dialling.

    python benchmarks/mesh_transport.py [--seconds 2]

Each side is a process of its own, on loopback. `tcp` is asyncio's plain sockets with the same
framing and no encryption: what the machine and the event loop cost by themselves. The factors are
to that one, taken in the same run. `stall` is the longest time that the sender's event loop stood
still while it sent 64 KiB frames: what every other stream of the process waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinkex._clock import SystemClock
from tinkex.errors import LinkClosedError
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.tasks import let_others_run
from tinkex.mesh.transport.base import Contact, Link
from tinkex.mesh.transport.frames import Deframer, enframe
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport

KINDS = ("tcp", "tls", "iroh")
SMALL = b"e" + bytes(99)
LARGE = b"s" + bytes((1 << 16) - 1)
DONE = b"d"
IN_FLIGHT = 32


class TcpLink:
    """Frames over a plain socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.deframer = Deframer()
        self.frames: list[bytes] = []

    async def send(self, frame: bytes) -> None:
        """Send one frame."""
        self.writer.write(enframe(frame))
        await self.writer.drain()

    async def receive(self) -> bytes:
        """Wait for the next one."""
        while not self.frames:
            data = await self.reader.read(1 << 16)
            if not data:
                raise LinkClosedError("closed")
            self.frames = self.deframer.feed(data)[::-1]
        return self.frames.pop()

    async def close(self) -> None:
        """End it."""
        self.writer.close()


# --- the other process ----------------------------------------------------------------------------


async def answer(link: Link | TcpLink) -> None:
    """Echo what begins with e, count what begins with s, tell the count at d."""
    count = 0
    while True:
        try:
            frame = await link.receive()
            if frame[:1] == b"s":
                count += 1
            else:
                await link.send(frame if frame[:1] == b"e" else str(count).encode())
                count = 0 if frame == DONE else count
        except LinkClosedError:
            return


def transport_of(kind: str) -> TlsTransport | IrohTransport:
    made = TlsTransport if kind == "tls" else IrohTransport
    return made(KeyPair.generate(), bind=("127.0.0.1:0",), clock=SystemClock())


async def serve(kind: str) -> None:
    async with asyncio.TaskGroup() as group:
        if kind == "tcp":
            server = await asyncio.start_server(
                lambda r, w: group.create_task(answer(TcpLink(r, w))), "127.0.0.1", 0
            )
            print(json.dumps(["", [str(server.sockets[0].getsockname()[1])]]), flush=True)
            await server.serve_forever()
        transport = transport_of(kind)
        await transport.start()
        contact = transport.contact
        print(json.dumps([str(contact.peer_id), list(contact.addresses)]), flush=True)
        while True:
            group.create_task(answer(await transport.accept()))


# --- this process ---------------------------------------------------------------------------------


@dataclass
class Figures:
    """Of one kind of transport."""

    dial_ms: float
    trip_ms: float
    trip_p99_ms: float
    trips_s: float
    frames_s: float
    mib_s: float
    stall_ms: float


async def round_trips(link: Link | TcpLink, seconds: float) -> list[float]:
    taken = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        await link.send(SMALL)
        await link.receive()
        taken.append(time.perf_counter() - began)
    return taken


async def many_at_once(link: Link | TcpLink, seconds: float) -> float:
    """Round trips a second with so many under way."""
    for _ in range(IN_FLIGHT):
        await link.send(SMALL)
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        await link.receive()
        count += 1
        await link.send(SMALL)
    taken = time.perf_counter() - began
    for _ in range(IN_FLIGHT):
        await link.receive()
    return count / taken


async def one_way(link: Link | TcpLink, frame: bytes, seconds: float) -> float:
    """Frames a second that arrived."""
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        await link.send(frame)
        await let_others_run()
    await link.send(DONE)
    count = int(await link.receive())
    return count / (time.perf_counter() - began)


async def longest_stall(work: Awaitable[float]) -> tuple[float, float]:
    """The result of some work, and the longest time in which the event loop did nothing else."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began - 0.001)

    watching = asyncio.create_task(watch())
    try:
        return await work, longest
    finally:
        watching.cancel()


async def measure(kind: str, told: list, seconds: float) -> Figures:
    peer_id, addresses = told
    transport = None
    if kind != "tcp":
        transport = transport_of(kind)
        await transport.start()
        contact = Contact(PeerId.parse(peer_id), tuple(addresses))

    async def dial() -> Link | TcpLink:
        if transport is None:
            return TcpLink(*await asyncio.open_connection("127.0.0.1", int(addresses[0])))
        return await transport.dial(contact)

    dials = []
    for _ in range(20):
        began = time.perf_counter()
        link = await dial()
        dials.append(time.perf_counter() - began)
        await link.close()
    link = await dial()
    await round_trips(link, 0.3)
    trips = await round_trips(link, seconds)
    trips_s = await many_at_once(link, seconds)
    frames_s = await one_way(link, b"s" + SMALL[1:], seconds)
    large_s, stall = await longest_stall(one_way(link, LARGE, seconds))
    await link.close()
    if transport is not None:
        await transport.stop()
    return Figures(
        dial_ms=statistics.median(dials) * 1e3,
        trip_ms=statistics.median(trips) * 1e3,
        trip_p99_ms=statistics.quantiles(trips, n=100)[98] * 1e3,
        trips_s=trips_s,
        frames_s=frames_s,
        mib_s=large_s * len(LARGE) / (1 << 20),
        stall_ms=stall * 1e3,
    )


def run(kind: str, seconds: float) -> Figures:
    command = [sys.executable, __file__, "--serve", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            return asyncio.run(measure(kind, json.loads(server.stdout.readline()), seconds))
        finally:
            server.kill()


ROWS: list[tuple[str, Callable[[Figures], float]]] = [
    ("dial, ms", lambda f: f.dial_ms),
    ("round trip of 100 B, p50 ms", lambda f: f.trip_ms),
    ("round trip of 100 B, p99 ms", lambda f: f.trip_p99_ms),
    (f"round trips/s, {IN_FLIGHT} under way", lambda f: f.trips_s),
    ("frames of 100 B/s, one way", lambda f: f.frames_s),
    ("MiB/s, frames of 64 KiB", lambda f: f.mib_s),
    ("longest stall of the sender, ms", lambda f: f.stall_ms),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return
    figures = {kind: run(kind, options.seconds) for kind in KINDS}
    print(f"{'':34}" + "".join(f"{kind:>18}" for kind in KINDS))
    for name, value in ROWS:
        base = value(figures["tcp"])
        cells = [f"{value(figures[k]):>10.3g} ({value(figures[k]) / base:4.2f}x)" for k in KINDS]
        print(f"{name:34}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
