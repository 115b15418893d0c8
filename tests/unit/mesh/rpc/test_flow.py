"""Slow readers, full limits and floods: who is slow waits alone, and memory stays bounded."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from mesh_rpc import Answer, Ask, Echo, World, caught, raw_link, raw_server, settled, until

from tinkex.errors import LinkClosedError, PeerProtocolError
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.messages import (
    Bye,
    Cancel,
    Credit,
    End,
    Items,
    Ping,
    Pong,
    Request,
    Response,
    decode_frame,
    encode_frame,
)
from tinkex.mesh.rpc.service import Call, Unhurried, callable_by


class Lead(Unhurried, frozen=True, array_like=True, tag="lead"):
    """Says nothing that cannot wait a little."""


class Leading(Echo):
    """Leads with such an item."""

    service = "leading"

    @callable_by(CERTIFIED)
    async def rpc_lead(self, request: Ask, call: Call) -> AsyncIterator[Lead]:
        yield Lead()
        await self.gate.wait()
        yield Lead()


@pytest.mark.parametrize("soon", [True, False])
async def test_unhurried_item_waits_a_moment_for_the_next(soon):
    leading = Leading()
    async with World() as world, raw_link(world, leading) as (_, link):
        await link.send(encode_frame([Request(1, "leading.lead", 60_000, 4096, "", b"\x80")]))
        reading = asyncio.ensure_future(link.receive())
        await settled()
        assert not reading.done()
        if soon:
            leading.gate.set()
        else:
            await world.pass_time(RpcConfig().unhurried_s, step=RpcConfig().unhurried_s)
        items, *ends = decode_frame(await reading)
        assert (len(items.bodies), ends) == ((2, [End(1)]) if soon else (1, []))


async def test_stuck_reader_stops_its_own_stream_and_no_other():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.PROCESSOR, echo), await world.peer()
        stuck = client.stream(
            server.contact, Echo.rpc_count, Ask(count=10_000, size=100), timeout_s=600
        )
        await anext(stuck)
        await settled(200)
        held = echo.yielded
        assert held <= 2 * RpcConfig().window_bytes / 100
        flowing = client.stream(
            server.contact, Echo.rpc_count, Ask(count=2000, size=100), timeout_s=600
        )
        assert [reply.number async for reply in flowing] == list(range(2000))
        assert echo.yielded - 2000 == held
        rest = [reply.number async for reply in stuck]
        assert rest == list(range(1, 10_000))


async def test_calls_beyond_the_peers_limit_wait_for_their_turn():
    async with World(config=RpcConfig(max_calls=3)) as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        tasks = [
            asyncio.create_task(
                client.call(server.contact, Echo.rpc_wait, Ask(str(n)), timeout_s=60)
            )
            for n in range(10)
        ]
        await until(lambda: echo.started == 3)
        await settled()
        assert echo.started == 3
        # One that waits for its turn is cancelled, and another that runs.
        tasks[9].cancel()
        tasks[0].cancel()
        await until(lambda: echo.started == 4)
        echo.gate.set()
        assert [(await task).text for task in tasks[1:9]] == [str(n) for n in range(1, 9)]


async def test_requests_beyond_the_peers_bytes_wait_for_their_turn():
    async with World(config=RpcConfig(max_request_bytes=10_000)) as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        echo.gate.set()
        replies = await asyncio.gather(
            *(
                client.call(server.contact, Echo.rpc_wait, Ask("x" * 8000), timeout_s=60)
                for _ in range(10)
            )
        )
        assert len(replies) == 10


async def test_calls_that_wait_for_their_turn_go_on_over_a_new_link():
    async with World(config=RpcConfig(max_calls=1)) as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        first, second, third = (
            asyncio.create_task(
                client.call(server.contact, Echo.rpc_wait, Ask(str(n)), timeout_s=60)
            )
            for n in range(3)
        )
        await until(lambda: echo.started == 1)
        client.renew(world.credentials(Role.GATEWAY, client.credentials.key_pair))
        await until(lambda: echo.started == 2)
        echo.gate.set()
        assert [(await task).text for task in (first, second, third)] == ["0", "1", "2"]


async def test_request_and_cancel_in_one_frame_are_answered():
    async with World() as world, raw_link(world, Echo()) as (_, link):
        request = Request(1, "echo.wait", 60_000, 0, "", b"\x80")
        await link.send(encode_frame([request, Cancel(1)]))
        (answer,) = decode_frame(await link.receive())
        assert answer.error.name == "LinkClosedError"


async def test_call_whose_time_is_over_when_it_comes_is_answered():
    async with World() as world, raw_link(world, Echo()) as (_, link):
        await link.send(encode_frame([Request(1, "echo.wait", 0, 0, "", b"\x80")]))
        (answer,) = decode_frame(await link.receive())
        assert answer.error.name == "PeerTimeoutError"


@pytest.mark.parametrize(
    ("method", "window", "body"),
    [
        ("echo.say", 0, b"\xc1"),
        ("echo.say", 0, b""),
        ("echo.say", 0, b"\x81\xa4text\x01"),
        ("echo.say", 0, b"\x81\xa4more\x01"),
        ("echo.say", 0, b"\x91" * 50_000),
        ("echo.say", 0, b"\x81\xa4text\xa1\xff"),
        ("echo.say", 100, b"\x80"),
        ("echo.count", 0, b"\x80"),
        ("nothing", 0, b"\x80"),
    ],
)
async def test_request_that_makes_no_sense_is_refused_and_the_link_goes_on(method, window, body):
    async with World() as world, raw_link(world, Echo()) as (_, link):
        await link.send(encode_frame([Request(1, method, 1000, window, "", body)]))
        (answer,) = decode_frame(await link.receive())
        unknown = method == "nothing"
        assert answer.error.name == ("PeerUnreachableError" if unknown else "PeerProtocolError")
        await link.send(encode_frame([Request(2, "echo.say", 1000, 0, "nonsense", b"\x80")]))
        (answer,) = decode_frame(await link.receive())
        assert isinstance(answer, Response)


async def test_reply_that_makes_no_sense_is_a_protocol_error():
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        calling = asyncio.create_task(
            caught(client.call(contact, Echo.rpc_say, Ask(), timeout_s=60))
        )
        await until(lambda: links)
        await links[0].receive()
        await links[0].send(encode_frame([Response(1, b"\xc1")]))
        assert isinstance(await calling, PeerProtocolError)


@pytest.mark.parametrize(
    "broken",
    [
        [Response(7, b"")],
        [Items(1, (b"x",))],
        [End(1)],
        [Pong(1000)],
        [Cancel(1)],
        [Credit(1, 1)],
        [Request(5, "a.b", 1, 0, "", b"")],
        [Bye(), Request(1, "a.b", 1, 0, "", b"")],
        None,
    ],
)
async def test_peer_that_breaks_the_protocol_loses_its_link(broken):
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        calling = asyncio.create_task(
            caught(client.call(contact, Echo.rpc_say, Ask(), timeout_s=60))
        )
        await until(lambda: links)
        await links[0].receive()
        await links[0].send(b"\xc1" if broken is None else encode_frame(broken))
        assert isinstance(await calling, PeerProtocolError)
        await until(lambda: links[0].closed)
        assert client.links() == ()


async def test_items_without_credit_end_the_link():
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        replies = client.stream(contact, Echo.rpc_count, Ask(), timeout_s=60)
        reading = asyncio.create_task(anext(replies))
        await until(lambda: links)
        await links[0].receive()
        item = b"\x81\xa4text\xda\x40\x00" + b"x" * 0x4000
        await links[0].send(encode_frame([Items(1, (item,))]))
        assert (await reading).text == "x" * 0x4000
        for _ in range(8):
            if not links[0].closed:
                await links[0].send(encode_frame([Items(1, (item,))]))
                await settled()
        assert links[0].closed
        seen = [reply async for reply in first_of(replies, 3)]
        assert len(seen) == 3
        await replies.aclose()


async def test_flooding_peer_costs_bounded_memory():
    async with World() as world, raw_link(world, Echo()) as (server, link):
        # It reads nothing, and sends what it may: requests to the limit, pings, cancels, credit.
        calls = 64
        requests = [
            Request(n, "echo.count_then_wait", 60_000, 4096, "", b"\x81\xa5count\x01")
            for n in range(1, calls + 1)
        ]
        await link.send(encode_frame(requests))
        await settled()
        flood = encode_frame([Ping(1), Cancel(1), Cancel(2), Credit(3, 1), Ping(2)] * 50)
        tracemalloc.start()
        try:
            for _ in range(20):
                await link.send(flood)
                await settled(3)
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(60):
                await link.send(flood)
                await settled(3)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 100_000
        assert server.links()[0].incoming <= calls


async def test_more_calls_than_allowed_end_the_link():
    async with World() as world, raw_link(world, Echo()) as (server, link):
        body = b"\x80"
        number = 0
        while not link.closed and number < 2000:
            await link.send(
                encode_frame(
                    [Request(number + n, "echo.wait", 60_000, 0, "", body) for n in range(1, 101)]
                )
            )
            number += 100
            await settled(3)
        assert RpcConfig().max_calls < number <= RpcConfig().max_calls + 200
        await until(lambda: server.links() == ())


async def test_handlers_end_when_their_caller_is_lost():
    async with World() as world:
        echo = Echo()
        async with raw_link(world, echo) as (_, link):
            await link.send(
                encode_frame([Request(n, "echo.wait", 60_000, 0, "", b"\x80") for n in (1, 2, 3)])
            )
            await until(lambda: echo.started == 3)
            await link.close()
            await until(lambda: echo.cancelled == 3)


async def test_handler_that_ignores_its_cancel_answers_nobody():
    class Stubborn(Echo):
        async def rpc_wait(self, request, call):
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
            return Answer("all the same")

    async with World() as world:
        echo = Stubborn()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        waiting = asyncio.create_task(
            client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=60)
        )
        await until(lambda: server.links() and server.links()[0].incoming == 1)
        await settled()
        waiting.cancel()
        await until(lambda: echo.cancelled == 1)
        await until(lambda: client.links()[0].outgoing == 0)
        assert (
            await client.call(server.contact, Echo.rpc_say, Ask("on"), timeout_s=5)
        ).text == "on"


async def test_stream_that_is_slow_to_begin_ends_after_the_idle_time():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.PROCESSOR, echo), await world.peer()
        replies = client.stream(
            server.contact,
            Echo.rpc_count_then_wait,
            Ask(count=1),
            timeout_s=60,
            idle_timeout_s=2,
        )
        await anext(replies)
        failing = asyncio.create_task(caught(anext(replies)))
        await settled()
        await world.pass_time(2.1)
        assert "2 s" in str(await failing)
        await until(lambda: echo.cancelled == 1)


async def test_link_that_ends_gives_what_came_before():
    async with World() as world, raw_server(world) as (contact, links):
        client = await world.peer()
        replies = client.stream(contact, Echo.rpc_count, Ask(), timeout_s=60)
        reading = asyncio.create_task(anext(replies))
        await until(lambda: links)
        await links[0].receive()
        item = b"\x81\xa4text\xa1x"
        await links[0].send(encode_frame([Items(1, (item, item, item))]))
        await settled()
        await links[0].close()
        await settled()
        assert await reading == Answer("x")
        assert [await anext(replies), await anext(replies)] == [Answer("x")] * 2
        assert isinstance(await caught(anext(replies)), LinkClosedError)


async def first_of(replies, count):
    for _ in range(count):
        yield await anext(replies)
