"""Calls over the real transports, on this machine's loopback and its own clock."""

import asyncio
import contextlib
import json
import sys
import threading

import mesh_rpc_program
import pytest
from mesh_rpc import Answer, Ask, Echo, caught, hello_of, not_found
from mesh_rpc_program import TRANSPORTS, description
from mesh_trust import TestNetwork
from patience import until

from tinkex._clock import SystemClock
from tinkex.errors import (
    LinkClosedError,
    MeshError,
    NotFoundError,
    PeerTimeoutError,
    PermissionDeniedError,
    TrustError,
)
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.messages import Request, decode_greeting, encode_frame, encode_greeting
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.rpc.service import Call, callable_by
from tinkex.mesh.transport.base import Contact

PATIENCE_S = 60.0
"""Seconds for anything here, on a machine that does much else."""


class Net:
    """Peers over one kind of transport."""

    def __init__(self, kind):
        self.kind = kind
        self.clock = SystemClock()
        self.trust = TestNetwork(self.clock.now())
        self.peers = []

    def credentials(self, role, key_pair=None):
        key_pair = key_pair or KeyPair.generate()
        encoded = None if role is None else self.trust.peer(role, key_pair).encoded
        return Credentials(key_pair, self.trust.network, self.trust.roots, encoded)

    async def peer(self, role=Role.GATEWAY, *services, credentials=None, config=None):
        credentials = credentials or self.credentials(role)
        transport = TRANSPORTS[self.kind](credentials.key_pair, clock=self.clock)
        peers = Peers(transport, credentials, clock=self.clock, config=config)
        for service in services:
            peers.serve(service)
        await peers.start()
        self.peers.append(peers)
        return peers


@pytest.fixture(params=sorted(TRANSPORTS))
async def net(request):
    net = Net(request.param)
    yield net
    async with asyncio.timeout(PATIENCE_S):
        for peers in net.peers:
            await peers.stop()


async def test_calls_streams_and_errors_pass(net):
    echo = Echo()
    echo.error = not_found()
    server, client = await net.peer(Role.AUTH, echo), await net.peer()
    assert await client.call(
        server.contact, Echo.rpc_say, Ask("a", 1), timeout_s=PATIENCE_S
    ) == Answer("a", 1)
    stream = client.stream(
        server.contact, Echo.rpc_count, Ask(count=500, size=300), timeout_s=PATIENCE_S
    )
    assert [reply.number async for reply in stream] == list(range(500))
    error = await caught(client.call(server.contact, Echo.rpc_fail, Ask(), timeout_s=PATIENCE_S))
    assert (type(error), error.request_id) == (NotFoundError, "r-1")
    big = Ask("x" * 1_000_000)
    assert (
        len((await client.call(server.contact, Echo.rpc_say, big, timeout_s=PATIENCE_S)).text)
        == 10**6
    )
    assert await client.ping(server.contact) > 0
    assert len(client.links()) == 1


async def test_cancel_and_deadline_reach_the_handler(net):
    echo = Echo()
    server, client = await net.peer(Role.AUTH, echo), await net.peer()
    stream = client.stream(
        server.contact, Echo.rpc_count_then_wait, Ask(count=1), timeout_s=PATIENCE_S
    )
    await anext(stream)
    await stream.aclose()
    await until(lambda: echo.cancelled == 1)
    late = client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=0.2)
    assert isinstance(await caught(late), PeerTimeoutError)
    await until(lambda: echo.cancelled == 2)


async def test_thousand_calls_at_once_are_answered(net):
    server, client = await net.peer(Role.AUTH, Echo()), await net.peer()
    replies = await asyncio.gather(
        *(
            client.call(server.contact, Echo.rpc_say, Ask(count=n), timeout_s=PATIENCE_S)
            for n in range(1000)
        )
    )
    assert [reply.number for reply in replies] == list(range(1000))


async def test_others_have_a_turn_between_frames_that_came_together(net):
    open_then = []

    class Looking(Echo):
        @callable_by(CERTIFIED)
        async def rpc_say(self, request: Ask, call: Call) -> Answer:
            open_then.append(server.links()[0].incoming)
            return Answer("")

    server = await net.peer(Role.AUTH, Looking())
    credentials = net.credentials(Role.GATEWAY)
    transport = TRANSPORTS[net.kind](credentials.key_pair, clock=net.clock)
    await transport.start()
    link = await transport.dial(server.contact)
    await link.send(encode_greeting(hello_of(net, credentials)))
    decode_greeting(await link.receive())
    for number in range(1, 202):
        request = Request(number, "echo.say", 60_000, 0, "", b"\x80")
        assert link.send_now(encode_frame([request]))
        if number == 1:
            await link.receive()
    await until(lambda: len(open_then) == 201)
    await transport.stop()
    assert max(open_then) <= 64


async def test_stuck_reader_stops_no_other_stream(net):
    echo = Echo()
    server, client = await net.peer(Role.PROCESSOR, echo), await net.peer()
    asked = Ask(count=3000, size=200)
    stuck = client.stream(server.contact, Echo.rpc_count, asked, timeout_s=PATIENCE_S)
    await anext(stuck)
    flowing = client.stream(server.contact, Echo.rpc_count, asked, timeout_s=PATIENCE_S)
    assert [reply.number async for reply in flowing] == list(range(3000))
    assert echo.yielded < 3000 + 2 * RpcConfig().window_bytes / 200
    assert [reply.number async for reply in stuck] == list(range(1, 3000))


async def test_peer_that_works_in_a_thread_answers_pings(net):
    done = threading.Event()

    class Busy(Echo):
        async def rpc_wait(self, request, call):
            self.started += 1
            await asyncio.to_thread(done.wait, PATIENCE_S)
            return Answer("done")

    busy = Busy()
    server, client = await net.peer(Role.AUTH, busy), await net.peer()
    calling = asyncio.create_task(
        client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=PATIENCE_S)
    )
    await until(lambda: busy.started)
    assert all([await client.ping(server.contact) > 0 for _ in range(3)])
    assert not calling.done()
    done.set()
    assert await calling == Answer("done")


async def test_both_may_dial_at_once(net):
    one, other = await net.peer(Role.AUTH, Echo()), await net.peer(Role.GATEWAY, Echo())
    await asyncio.gather(
        *(
            a.call(b.contact, Echo.rpc_say, Ask(), timeout_s=PATIENCE_S)
            for a, b in ((one, other),) * 5
        ),
        *(
            a.call(b.contact, Echo.rpc_say, Ask(), timeout_s=PATIENCE_S)
            for a, b in ((other, one),) * 5
        ),
    )
    await until(lambda: len(one.links()) == len(other.links()) == 1)


async def test_strangers_and_wrong_roles_are_refused_by_name(net):
    server = await net.peer(Role.AUTH, Echo())
    client, guest = await net.peer(Role.CLIENT), await net.peer(None)
    stranger = await net.peer(credentials=Net(net.kind).credentials(Role.GATEWAY))
    for caller, method, error in (
        (client, Echo.rpc_gateways, PermissionDeniedError),
        (guest, Echo.rpc_say, PermissionDeniedError),
        (stranger, Echo.rpc_say, TrustError),
    ):
        refused = caller.call(server.contact, method, Ask(), timeout_s=PATIENCE_S)
        assert type(await caught(refused)) is error
    assert await guest.call(
        server.contact, Echo.rpc_guests, Ask("in"), timeout_s=PATIENCE_S
    ) == Answer("in")


async def test_stopping_peer_drains_and_its_last_answers_arrive(net):
    echo = Echo()
    server, client = await net.peer(Role.AUTH, echo), await net.peer()
    calls = [
        asyncio.create_task(
            client.call(server.contact, Echo.rpc_wait, Ask("end"), timeout_s=PATIENCE_S)
        )
        for _ in range(20)
    ]
    await until(lambda: echo.started == 20)
    stopping = asyncio.create_task(server.stop(grace_s=PATIENCE_S))
    await asyncio.sleep(0)  # noqa: TID251 - it begins
    echo.gate.set()
    assert await asyncio.gather(*calls) == [Answer("end")] * 20
    await stopping


async def test_killed_process_is_noticed_and_called_again_when_it_is_back(net):
    """How soon is another matter: `test_links` has it, in virtual time."""
    credentials = net.credentials(Role.PROCESSOR)
    client = await net.peer()
    async with contextlib.AsyncExitStack() as stack:
        process, contact = await started(stack, net.kind, credentials)
        stream = client.stream(contact, Echo.rpc_count_then_wait, Ask(count=2), timeout_s=600)
        assert [(await anext(stream)).number for _ in range(2)] == [0, 1]
        failing = asyncio.create_task(caught(anext(stream)))
        process.kill()
        assert isinstance(await asyncio.wait_for(failing, PATIENCE_S), LinkClosedError)
        assert isinstance(await caught(ask(client, contact, 0.5)), MeshError)
        _, contact = await started(stack, net.kind, credentials)
        assert await ask(client, contact, PATIENCE_S) == Answer("x")


def ask(client, contact, timeout_s):
    return client.call(contact, Echo.rpc_say, Ask("x"), timeout_s=timeout_s)


async def started(stack, kind, credentials):
    """Start a process with a peer; returns it and where it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        mesh_rpc_program.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    stack.push_async_callback(killed, process)
    process.stdin.write(description(kind, credentials).encode() + b"\n")
    line = await process.stdout.readline()
    return process, Contact(credentials.key_pair.peer_id, tuple(json.loads(line)))


async def killed(process):
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    process._transport.close()
