"""What the mesh costs: client, gateway and processors as processes of their own, on loopback.

    python benchmarks/mesh_gateway.py [--transport tls] [--requests 200] [--streams 100]

Three measurements over real links, with the real workers (auth, gateway, processors, client):

latency   Requests of `tinkex/sprout` go by turns through client, gateway and processor, and to the
          processor's engine directly, within its process. What the mesh adds is the difference of
          the medians: to the first piece, to the last, and for a single token. No prompt comes
          twice, since the engine keeps what it computed of one, and each way goes first in turn.
cpu       As many requests again, one after the other to the receipt's settlement, first all through
          the mesh and then all directly: processor time and sleeps of each process for a request.
          Unlike the latency they hardly depend on who else uses the machine.
streams   So many streams at once through one gateway, from paced sources of 20 tokens/s each behind
          the processors' own calls. Each token carries the moment at which it was due (by the
          monotonic clock, which processes of one machine share); it is late by as much as it comes
          to its reader after that.

The goals are for a machine that does nothing else: its load average is printed beside the figures,
and what the quickest tenth of the requests took, which depends on it least.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from process_cpu import is_readable, spent_by

from tinkex._clock import SystemClock
from tinkex._process import settle_down
from tinkex.cli.openmp import wait_briefly
from tinkex.errors import InputError
from tinkex.mesh.accounts.scopes import SCOPES
from tinkex.mesh.api import auth
from tinkex.mesh.api.completion import CompletionMessage, completion_message, completion_request
from tinkex.mesh.api.gateway import GatewayApi
from tinkex.mesh.api.processor import ServedModel
from tinkex.mesh.config import MeshConfig, parse_contact
from tinkex.mesh.processing.backend import Backend, Job
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.service import Call, Service, callable_by
from tinkex.mesh.workers.client import ClientConfig, ClientWorker
from tinkex.mesh.workers.entry import enter_network
from tinkex.mesh.workers.founding import Founder, found
from tinkex.mesh.workers.member import Member
from tinkex.mesh.workers.model_config import ModelConfig, make_backend
from tinkex.mesh.workers.processor import ProcessorConfig, ProcessorWorker
from tinkex.mesh.workers.whole import Build, run_until_told
from tinkex.openai_api import CompletionRequest, Piece, TextPrompt, Token

CLOCK = SystemClock()
SPROUT = "tinkex/sprout"
PACED = "bench/paced"
TOKENS_PER_S = 20.0
TOKENS = 32
KINDS = {"token": 1, "stream": TOKENS}
"""Tokens of each kind of request."""
LATE_S = 0.2
WARM_UP = 50
DUE = struct.Struct("<d")
START_S = 120.0
GOALS_MS = {"tls": 2.0, "iroh": 5.0}
FIRST_TOKEN_GOAL_MS = 10.0


class Direct(msgspec.Struct, frozen=True):
    """Run a request in the processor's own engine."""

    request: CompletionMessage


class Took(msgspec.Struct, frozen=True):
    """Seconds to the first piece and to the last."""

    first: float
    last: float


class BenchApi(Service):
    """Lets the client time the processor's engine as it is without the mesh."""

    service = "bench"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @callable_by(CERTIFIED)
    async def rpc_direct(self, request: Direct, call: Call) -> Took:  # noqa: ARG002
        """Run a request here, and say how long it took."""
        start = time.monotonic()
        job = Job(request=completion_request(request.request), account="bench")
        run = await self._backend.begin(job)
        return await timed(run.pieces(), start)


async def timed(pieces: AsyncIterator[Piece | None], start: float) -> Took:
    """Read a completion; how long it took."""
    first = 0.0
    async for piece in pieces:
        if piece is not None and not first:
            first = time.monotonic() - start
    return Took(first, time.monotonic() - start)


class PacedRun:
    """A completion of which a token is due every 50 ms."""

    deterministic = True
    prompt_tokens = 1
    cached_tokens = 0

    def __init__(self, tokens: int, phase: float) -> None:
        self._tokens = tokens
        self._phase = phase

    def cancel(self) -> None:
        """Nothing runs that could be ended."""

    async def pieces(self) -> AsyncGenerator[Piece | None, None]:
        """Give each token when it is due."""
        start = time.monotonic() + self._phase
        for place in range(self._tokens):
            due = start + place / TOKENS_PER_S
            await asyncio.sleep(due - time.monotonic())
            token = Token(place, "x", DUE.pack(due), None, (), place)
            last = place == self._tokens - 1
            yield Piece(0, "x", (token,), finish_reason="length" if last else None)


class PacedBackend:
    """Makes tokens at a pace, and nothing else."""

    model = ServedModel(
        name=PACED, max_context_length=4096, revision="1", backend="engine", adapters=False
    )
    fingerprint = "paced"
    slots = 128
    adapters: tuple[str, ...] = ()
    failure = ""

    async def start(self) -> None:
        """Nothing to make ready."""

    async def stop(self) -> None:
        """Nothing to end."""

    async def load_adapter(self, content: str, folder: Path) -> None:  # noqa: ARG002
        """Refuse."""
        raise InputError("a paced source has no adapters")

    async def begin(self, job: Job) -> PacedRun:
        """Begin; streams are out of step, as those of many users are."""
        return PacedRun(job.request.max_tokens or 1, secrets.randbelow(1000) / 1000 / TOKENS_PER_S)

    async def count_tokens(self, request: CompletionRequest) -> int:  # noqa: ARG002
        """One, whatever it is."""
        return 1


# --- processes ------------------------------------------------------------------------------------


async def run_worker(arguments: argparse.Namespace) -> None:
    """Be one worker until told to stop."""
    wait_briefly()  # as `tinkex mesh` does
    config = config_of(arguments)
    invitation = arguments.invitation or None
    role = Role(arguments.role)
    build: Build | None = None
    if role is Role.PROCESSOR:
        build = partial(processor, arguments)
    whole = await enter_network(config, role, invitation=invitation, build=build)

    def on_ready() -> None:
        contact = whole.member.contact
        told = {"peer_id": str(contact.peer_id), "addresses": contact.addresses, "pid": os.getpid()}
        settle_down().join()  # as `tinkex mesh` does, which does not wait for it
        arguments.ready_file.write_text(json.dumps(told))

    await run_until_told(whole, grace_s=1.0, on_ready=on_ready, on_told=lambda: None)


def config_of(arguments: argparse.Namespace) -> MeshConfig:
    """Settings of one worker."""
    return MeshConfig(
        data_dir=arguments.data_dir,
        transport=arguments.transport,
        client=ClientConfig(host=None),
        log_level="warning",
    )


async def processor(
    arguments: argparse.Namespace, member: Member, _: AsyncExitStack
) -> ProcessorWorker:
    """Make a processor of the kind that is measured."""
    backend: Backend = PacedBackend()
    if arguments.backend == "engine":
        # As `tinkex mesh processor` makes it: where it loads decides how fast its steps are.
        backend = await make_backend(ModelConfig(base_model=SPROUT), clock=CLOCK, on_fault=print)
    member.peers.serve(BenchApi(backend))
    return ProcessorWorker(
        member, backend, data_dir=arguments.data_dir, config=ProcessorConfig(announce_s=1.0)
    )


# --- the client -----------------------------------------------------------------------------------


class Program:
    """A client worker's program with some accounts' keys."""

    def __init__(self, member: Member, worker: ClientWorker) -> None:
        self.member = member
        self.worker = worker
        self.keys: list[str] = []
        self._numbers = itertools.count(1000)

    async def make_keys(self, count: int) -> None:
        """Make accounts, one key each: a key may have so many requests at once."""
        for number in range(count):
            email, password = f"user{number}@example.org", secrets.token_urlsafe(16)
            await self.worker.ask(
                GatewayApi.rpc_register, auth.Register(email=email, password=password)
            )
            session = await self.worker.ask(
                GatewayApi.rpc_login, auth.Login(email=email, password=password)
            )
            request = auth.CreateKey(access_token=session.access_token, name="bench", scopes=SCOPES)
            self.keys.append((await self.worker.ask(GatewayApi.rpc_create_key, request)).key)

    async def wait_for(self, *models: str) -> None:
        """Wait until a gateway knows every key, and processors of these models."""
        until = CLOCK.monotonic() + START_S
        while True:
            try:
                for key in self.keys:
                    cards = await self.worker.completer.models(key)
                if {card.name for card in cards} >= set(models):
                    return
            except Exception as error:
                if CLOCK.monotonic() > until:
                    raise
                del error
            await asyncio.sleep(0.1)

    def asked(self, kind: str) -> CompletionRequest:
        """Make a request like none before it, of as many tokens as all of its kind."""
        number = next(self._numbers)
        prompt = TextPrompt(f"Once {number}")
        return CompletionRequest(model=SPROUT, prompt=prompt, max_tokens=KINDS[kind], seed=number)

    async def run(self, way: str, request: CompletionRequest, *, settled: bool = False) -> Took:
        """Run a request through the mesh, or directly; to the receipt's settlement if so asked."""
        if way == "direct":
            return await self._direct(request)
        key = self.keys[(request.seed or 0) % len(self.keys)]
        start = time.monotonic()
        completion = await self.worker.completer.complete(key, request)
        took = await timed(completion.pieces(), start)
        if settled:
            assert await completion.settled() is not None, "no receipt"
        return took

    async def _direct(self, request: CompletionRequest) -> Took:
        """Have the processor run it without the mesh."""
        for record in await self.member.discovery.lookup(f"model:{request.model}"):
            return await self.member.peers.call(
                record.contact,
                BenchApi.rpc_direct,
                Direct(completion_message(request)),
                timeout_s=60.0,
            )
        raise RuntimeError("no processor is announced")


async def measure(arguments: argparse.Namespace) -> None:
    """Be the client: measure, and print the figures as JSON."""
    config = config_of(arguments)
    whole = await enter_network(config, Role.CLIENT, invitation=arguments.invitation)
    async with whole:
        worker = whole.inner
        assert isinstance(worker, ClientWorker)
        program = Program(whole.member, worker)
        settle_down().join()
        await program.make_keys(4)
        await program.wait_for(SPROUT, *([PACED] if arguments.streams else []))
        figures: dict[str, Any] = {
            "pid": os.getpid(),
            "links": sorted({link.role.value for link in whole.member.peers.links() if link.role}),
        }
        if arguments.requests:
            figures["latency"] = await latency(program, arguments.requests, arguments.kinds)
            if is_readable():
                pids = {"client": os.getpid(), **json.loads(arguments.watched)}
                figures["cpu"] = await cpu(program, arguments.requests, arguments.kinds, pids)
        if arguments.streams:
            figures["streams"] = await streams(program, arguments.streams, arguments.seconds)
    print(json.dumps(figures))


async def latency(program: Program, requests: int, kinds: list[str]) -> dict[str, float]:
    """Ask by turns through the mesh and directly; medians, in milliseconds."""
    found: dict[str, list[float]] = {}
    for kind in kinds:
        for turn in range(requests + WARM_UP):
            for way in ("mesh", "direct") if turn % 2 else ("direct", "mesh"):
                took = await program.run(way, program.asked(kind))
                if turn >= WARM_UP:
                    found.setdefault(f"{kind} {way} first", []).append(took.first)
                    found.setdefault(f"{kind} {way} last", []).append(took.last)
    medians = {name: statistics.median(values) * 1000 for name, values in found.items()}
    tenths = {
        f"{name}, best tenth": statistics.quantiles(values, n=10)[0] * 1000
        for name, values in found.items()
    }
    return medians | tenths


async def cpu(
    program: Program, requests: int, kinds: list[str], pids: dict[str, int]
) -> dict[str, list[float]]:
    """Ask first through the mesh, then directly; milliseconds and sleeps of each."""
    found = {}
    for kind in kinds:
        for way in ("mesh", "direct"):
            before = {name: spent_by(pid) for name, pid in pids.items()}
            for _ in range(requests):
                await program.run(way, program.asked(kind), settled=True)
            for name, pid in pids.items():
                since = spent_by(pid).since(before[name])
                found[f"{kind} {way} {name}"] = [
                    since.cpu_s * 1000 / requests,
                    since.sleeps / requests,
                ]
    return found


async def streams(program: Program, count: int, seconds: float) -> dict[str, float]:
    """Run paced streams at once; how late their tokens were, in milliseconds."""
    late: list[float] = []

    async def one(number: int) -> int:
        request = CompletionRequest(
            model=PACED,
            prompt=TextPrompt("x"),
            max_tokens=round(seconds * TOKENS_PER_S),
            seed=number,
        )
        key = program.keys[number % len(program.keys)]
        completion = await program.worker.completer.complete(key, request)
        expected = 0
        async for piece in completion.pieces():
            now = time.monotonic()
            for token in piece.tokens if piece is not None else ():
                assert token.token == expected, "a token was lost or doubled"
                expected += 1
                late.append(now - DUE.unpack(token.data)[0])
        assert expected == request.max_tokens
        assert await completion.settled() is not None
        return expected

    await asyncio.gather(*(one(number) for number in range(count)))
    ordered = sorted(late)
    return {
        "tokens": len(ordered),
        "p50": statistics.median(ordered) * 1000,
        "p99": ordered[int(len(ordered) * 0.99)] * 1000,
        "max": ordered[-1] * 1000,
        "late": sum(each > LATE_S for each in ordered),
    }


# --- the whole ------------------------------------------------------------------------------------


class Network:
    """The processes of one network."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.arguments = arguments
        self.processes: dict[str, subprocess.Popen[str]] = {}
        passphrase = secrets.token_urlsafe(16)
        found(folder, "bench", passphrase, clock=CLOCK)
        self.founder = Founder(folder, passphrase)
        self.told: dict[str, dict[str, Any]] = {}

    def start(self, name: str, role: Role, *more: str, measure: bool = False) -> None:
        """Start a process; waits until a worker is ready."""
        command = [sys.executable, __file__, "--role", role.value]
        command += ["--data-dir", str(self.folder / name), "--transport", self.arguments.transport]
        command += ["--ready-file", str(self.folder / f"{name}.json"), *more]
        if role is not Role.AUTH:
            told = self.told["auth"]
            text = f"{told['peer_id']}@{','.join(told['addresses'])}"
            contacts = [parse_contact(text)]
            command += [
                "--invitation",
                self.founder.invite(role, contacts=contacts, now=CLOCK.now()),
            ]
        out = subprocess.PIPE if measure else None
        process = subprocess.Popen(command, stdout=out, text=True)
        self.processes[name] = process
        ready, until = self.folder / f"{name}.json", CLOCK.monotonic() + START_S
        while not measure and not ready.exists():
            assert process.poll() is None, f"{name} did not start"
            assert CLOCK.monotonic() < until, f"{name} does not get ready"
            CLOCK.sleep_sync(0.05)
        if not measure:
            CLOCK.sleep_sync(0.05)
            self.told[name] = json.loads(ready.read_text())

    def stop(self) -> None:
        """End every process that was started here."""
        for process in self.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            process.wait(30)


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start everything, and measure; 0 requests or 0 streams leave that part out."""
    with tempfile.TemporaryDirectory() as place:
        network = Network(Path(place), arguments)
        try:
            network.start("auth", Role.AUTH)
            network.start("gateway", Role.GATEWAY)
            network.start("engine", Role.PROCESSOR, "--backend", "engine")
            for number in range(arguments.processors if arguments.streams else 0):
                network.start(f"paced{number}", Role.PROCESSOR, "--backend", "paced")
            more = [
                f"--{name}={getattr(arguments, name)}"
                for name in ("requests", "streams", "seconds")
            ]
            watched = {name: network.told[name]["pid"] for name in ("gateway", "engine")}
            more += ["--kinds", *arguments.kinds]
            more.append(f"--watched={json.dumps(watched)}")
            network.start("client", Role.CLIENT, *more, measure=True)
            out, _ = network.processes["client"].communicate(timeout=900)
            assert network.processes["client"].returncode == 0, "the client failed"
            figures: dict[str, Any] = json.loads(out.splitlines()[-1])
            check(network, figures)
        finally:
            network.stop()
    return figures


def added(found: dict[str, float]) -> dict[str, float]:
    """What the mesh adds to the medians, in milliseconds."""
    parts = {
        "a single token": "token {} last",
        "the first piece of a stream": "stream {} first",
        "the whole of a stream": "stream {} last",
    }
    return {
        name: found[part.format("mesh")] - found[part.format("direct")]
        for name, part in parts.items()
        if part.format("mesh") in found
    }


def check(network: Network, figures: dict[str, object]) -> None:
    """Assert that these were processes of their own, and real links between them."""
    pids = {told["pid"] for told in network.told.values()} | {figures["pid"], os.getpid()}
    assert len(pids) == len(network.told) + 2, "workers share a process"
    assert all(
        process.poll() is None for name, process in network.processes.items() if name != "client"
    )
    scheme = f"{network.arguments.transport}:"
    for told in network.told.values():
        assert all(address.startswith(scheme) for address in told["addresses"]), told


def show(figures: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Print the figures beside the goals; 1 where one is missed."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"transport {arguments.transport}, {arguments.requests} requests a figure, medians; load "
        f"average {load:.1f} a core"
    )
    missed = 0
    if found := figures.get("latency"):
        for name in sorted(found):
            print(f"  {name:36} {found[name]:8.2f} ms")
        goals = {
            "a single token": GOALS_MS[arguments.transport],
            "the first piece of a stream": FIRST_TOKEN_GOAL_MS,
        }
        for name, value in added(found).items():
            most = goals.get(name)
            told = "" if most is None else f"  (goal < {most:g})"
            missed += most is not None and value >= most
            print(f"added to {name:28} {value:8.2f} ms{told}")
    if spent := figures.get("cpu"):
        show_cpu(spent)
    if paced := figures.get("streams"):
        missed += bool(paced["late"])
        print(
            f"{arguments.streams} streams of {TOKENS_PER_S:g} tokens/s, {paced['tokens']:.0f} "
            f"tokens: late by p50 {paced['p50']:.1f}, p99 {paced['p99']:.1f}, at most "
            f"{paced['max']:.1f} ms; {paced['late']:.0f} by more than {LATE_S * 1000:.0f} ms  "
            "(goal 0)"
        )
    return int(bool(missed))


def show_cpu(spent: dict[str, list[float]]) -> None:
    """Print what each process spends for a request."""
    for kind in KINDS:
        if f"{kind} mesh client" not in spent:
            continue
        for way in ("mesh", "direct"):
            those = {
                name: spent[f"{kind} {way} {name}"] for name in ("client", "gateway", "engine")
            }
            each = ", ".join(
                f"{name} {ms:.2f} ({sleeps:.0f})" for name, (ms, sleeps) in those.items()
            )
            whole = sum(ms for ms, _ in those.values())
            print(f"  cpu of a {kind}, {way}: {whole:6.2f} ms a request: {each} (sleeps)")


def arguments_of(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--transport", choices=sorted(GOALS_MS), default="tls")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--processors", type=int, default=2)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    for name in ("role", "invitation", "backend", "watched"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    for name in ("data-dir", "ready-file"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.streams and arguments.processors < 1:
        parser.error("streams need a processor that paces them: --processors 1 or more")
    return arguments


def main() -> int:
    """Run the benchmark, or one of its processes."""
    arguments = arguments_of()
    if arguments.role == Role.CLIENT.value:
        asyncio.run(measure(arguments))
    elif arguments.role:
        asyncio.run(run_worker(arguments))
    else:
        return show(measured(arguments), arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
