"""Peers that call one another over memory links, and a service to be called."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec
from mesh_trust import TestNetwork

from tinkex.errors import NotFoundError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.messages import VERSION, Hello, decode_greeting, encode_greeting
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.rpc.service import Call, Service, callable_by
from tinkex.mesh.transport.memory import MemoryNetwork
from tinkex.testing import VirtualClock


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request."""

    text: str = ""
    count: int = 0
    size: int = 1


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reply."""

    text: str
    number: int = 0


class Echo(Service):
    """What tests call. `started`, `cancelled` and `finished` count handlers; `gate` holds some."""

    service = "echo"

    def __init__(self):
        self.gate = asyncio.Event()
        self.started = self.cancelled = self.finished = self.yielded = 0
        self.calls = []
        self.error = None

    @callable_by(CERTIFIED)
    async def rpc_say(self, request: Ask, call: Call) -> Answer:
        self.calls.append(call)
        return Answer(request.text * request.size, request.count)

    @callable_by({Role.GATEWAY})
    async def rpc_gateways(self, request: Ask, call: Call) -> Answer:
        return Answer(request.text)

    @callable_by((), guests=True)
    async def rpc_guests(self, request: Ask, call: Call) -> Answer:
        return Answer(request.text)

    @callable_by(CERTIFIED)
    async def rpc_wait(self, request: Ask, call: Call) -> Answer:
        with self.counted():
            await self.gate.wait()
        return Answer(request.text)

    @callable_by(CERTIFIED)
    async def rpc_fail(self, request: Ask, call: Call) -> Answer:
        raise self.error

    @callable_by(CERTIFIED)
    async def rpc_count(self, request: Ask, call: Call) -> AsyncIterator[Answer]:
        with self.counted():
            for number in range(request.count):
                self.yielded += 1
                yield Answer("x" * request.size, number)

    @callable_by(CERTIFIED)
    async def rpc_count_then_wait(self, request: Ask, call: Call) -> AsyncIterator[Answer]:
        with self.counted():
            for number in range(request.count):
                yield Answer("", number)
            await self.gate.wait()
            if self.error is not None:
                raise self.error

    @contextlib.contextmanager
    def counted(self):
        self.started += 1
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        self.finished += 1


class SkewedClock:
    """Another clock's time, with a date that is so many seconds ahead, or behind where negative."""

    def __init__(self, clock, seconds):
        self._clock, self._seconds = clock, seconds

    def now(self):
        return self._clock.now() + self._seconds

    def __getattr__(self, name):
        return getattr(self._clock, name)


@dataclass
class World:
    """Peers of one network on one clock. Use it as `async with World() as world`."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    config: RpcConfig = field(default_factory=RpcConfig)
    peers: list = field(default_factory=list)

    def __post_init__(self):
        self.trust = TestNetwork(self.clock.now())
        self.memory = MemoryNetwork()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for peers in self.peers:
            await asyncio.wait_for(peers.stop(), 20)

    def credentials(self, role=Role.GATEWAY, key_pair=None):
        key_pair = key_pair or KeyPair.generate()
        encoded = None if role is None else self.trust.peer(role, key_pair).encoded
        return Credentials(
            key_pair, self.trust.network, self.trust.roots, encoded, self.trust.is_revoked
        )

    async def peer(self, role=Role.GATEWAY, *services, credentials=None, address=None, **options):
        """Start a peer; `role` None: a guest."""
        credentials = credentials or self.credentials(role)
        transport = self.memory.transport(credentials.key_pair, address=address)
        options = {"clock": self.clock, "config": self.config} | options
        peers = Peers(transport, credentials, **options)
        for service in services:
            peers.serve(service)
        await peers.start()
        self.peers.append(peers)
        return peers

    async def pass_time(self, seconds, step=0.05):
        """Move the clock on in small steps, letting everybody run in between."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            await settled()

    async def in_time(self, awaitable, step=0.005):
        """What comes of something that waits a moment: the clock moves on until then."""
        waiting = asyncio.ensure_future(awaitable)
        while not waiting.done():
            self.clock.advance(step)
            await settled()
        return await waiting


async def settled(turns=20):
    """Let everything run that is ready."""
    for _ in range(turns):
        await asyncio.sleep(0)  # noqa: TID251 - no time passes


async def until(condition, turns=2000):
    """Let others run until something is true."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
    raise AssertionError("it never came true")


async def caught(awaitable):
    """Return what an awaitable raises."""
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return error
    raise AssertionError("nothing was raised")


def not_found():
    return NotFoundError("no such thing", request_id="r-1")


class raw_link:  # noqa: N801 - used as a function
    """`async with raw_link(world, service) as (server, link)`: greeted by hand."""

    def __init__(self, world, service, role=Role.GATEWAY):
        self.world, self.service, self.role = world, service, role

    async def __aenter__(self):
        world = self.world
        server = await world.peer(Role.AUTH, self.service)
        credentials = world.credentials(self.role)
        self.transport = world.memory.transport(credentials.key_pair)
        await self.transport.start()
        link = await self.transport.dial(server.contact)
        await link.send(encode_greeting(hello_of(world, credentials)))
        decode_greeting(await link.receive())
        return server, link

    async def __aexit__(self, *_):
        await self.transport.stop()


class raw_server:  # noqa: N801 - used as a function
    """`async with raw_server(world) as (contact, links)`: greets, and leaves the rest to a test."""

    def __init__(self, world):
        self.world = world

    async def __aenter__(self):
        credentials = self.world.credentials(Role.AUTH)
        self.transport = self.world.memory.transport(credentials.key_pair)
        await self.transport.start()
        links = []

        async def accept():
            while True:
                link = await self.transport.accept()
                decode_greeting(await link.receive())
                await link.send(encode_greeting(hello_of(self.world, credentials)))
                links.append(link)

        self.task = asyncio.create_task(accept())
        return self.transport.contact, links

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.transport.stop()


def hello_of(world, credentials):
    return Hello(VERSION, world.trust.network.raw, credentials.certificate, bytes(8), 1000, 1 << 20)
