"""Calls and streams between peers over memory links, on a clock moved by hand."""

import asyncio

import pytest
from mesh_rpc import Answer, Ask, Echo, World, caught, not_found, settled, until

from tinkex.errors import (
    EngineError,
    InputError,
    LinkClosedError,
    NotFoundError,
    PeerTimeoutError,
    PeerUnreachableError,
    PermissionDeniedError,
    TrustError,
)
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.messages import MAX_BODY_BYTES

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def call(caller, callee, method, request, timeout_s=30.0, **options):
    return caller.call(callee.contact, method, request, timeout_s=timeout_s, **options)


def stream(caller, callee, method, request, timeout_s=30.0, **options):
    return caller.stream(callee.contact, method, request, timeout_s=timeout_s, **options)


async def test_call_gets_the_reply_of_the_handler():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        reply = await call(client, server, Echo.rpc_say, Ask("hallo", 7))
        assert reply == Answer("hallo", 7)


async def test_handler_is_told_who_calls_until_when_and_in_which_trace():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer(Role.GATEWAY)
        await call(client, server, Echo.rpc_say, Ask(), timeout_s=2.5, trace=TRACE)
        (seen,) = echo.calls
        assert (seen.peer, seen.role, seen.trace) == (client.peer_id, Role.GATEWAY, TRACE)
        assert seen.deadline == pytest.approx(2.5, abs=0.01)


async def test_stream_gives_every_item_in_order():
    async with World() as world:
        server, client = await world.peer(Role.PROCESSOR, Echo()), await world.peer()
        seen = [
            reply.number async for reply in stream(client, server, Echo.rpc_count, Ask(count=50))
        ]
        assert seen == list(range(50))


async def test_calls_of_both_sides_share_one_link():
    async with World() as world:
        one, other = await world.peer(Role.GATEWAY, Echo()), await world.peer(Role.AUTH, Echo())
        await call(one, other, Echo.rpc_say, Ask())
        await call(other, one, Echo.rpc_say, Ask())
        assert len(one.links()) == len(other.links()) == 1


async def test_closing_a_stream_cancels_its_handler():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.PROCESSOR, echo), await world.peer()
        replies = stream(client, server, Echo.rpc_count_then_wait, Ask(count=1))
        await anext(replies)
        await replies.aclose()
        await until(lambda: echo.cancelled == 1)
        await until(lambda: client.links()[0].outgoing == 0)


async def test_cancelling_a_call_cancels_its_handler():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        waiting = asyncio.create_task(call(client, server, Echo.rpc_wait, Ask()))
        await until(lambda: echo.started == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: echo.cancelled == 1)


async def test_call_without_an_answer_in_time_ends_at_both_sides():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        waiting = asyncio.create_task(
            caught(call(client, server, Echo.rpc_wait, Ask(), timeout_s=2))
        )
        await until(lambda: echo.started == 1)
        await world.pass_time(2.05)
        assert isinstance(await waiting, PeerTimeoutError)
        await until(lambda: echo.cancelled == 1)


async def test_errors_of_handlers_reach_the_caller_whole():
    async with World() as world:
        echo = Echo()
        echo.error = not_found()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        error = await caught(call(client, server, Echo.rpc_fail, Ask()))
        assert type(error) is NotFoundError
        assert (str(error), error.request_id, error.status_code) == ("no such thing", "r-1", 404)


async def test_other_exceptions_of_handlers_tell_nothing_of_the_inside(caplog):
    async with World() as world:
        echo = Echo()
        echo.error = KeyError("my secret prompt")
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        error = await caught(call(client, server, Echo.rpc_fail, Ask("my secret prompt")))
        assert type(error) is EngineError
        assert "secret" not in str(error) + caplog.text
        assert "KeyError" in caplog.text


async def test_items_before_an_error_are_given_before_it():
    async with World() as world:
        echo = Echo()
        echo.error = not_found()
        server, client = await world.peer(Role.PROCESSOR, echo), await world.peer()
        replies = stream(client, server, Echo.rpc_count_then_wait, Ask(count=3))
        echo.gate.set()
        assert [(await anext(replies)).number for _ in range(3)] == [0, 1, 2]
        assert isinstance(await caught(anext(replies)), NotFoundError)


async def test_role_that_may_not_call_is_refused_and_told_who_may():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer(Role.CLIENT)
        error = await caught(call(client, server, Echo.rpc_gateways, Ask()))
        assert isinstance(error, PermissionDeniedError)
        assert "gateway" in str(error)


async def test_guest_may_call_what_is_open_to_guests_alone():
    async with World() as world:
        server, guest = await world.peer(Role.AUTH, Echo()), await world.peer(None)
        assert await call(guest, server, Echo.rpc_guests, Ask("in")) == Answer("in")
        assert isinstance(
            await caught(call(guest, server, Echo.rpc_say, Ask())), PermissionDeniedError
        )


async def test_method_that_is_not_offered_is_refused_by_name():
    async with World() as world:
        server, client = await world.peer(Role.AUTH), await world.peer()
        error = await caught(call(client, server, Echo.rpc_say, Ask()))
        assert isinstance(error, PeerUnreachableError)
        assert "echo.say" in str(error)


async def test_request_that_is_too_long_is_refused_before_it_is_sent():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        with pytest.raises(InputError, match=str(MAX_BODY_BYTES)):
            await call(client, server, Echo.rpc_say, Ask("x" * (MAX_BODY_BYTES + 1)))
        assert client.links() == ()


@pytest.mark.parametrize("ask", [Ask(count=2**64), Ask(text="\udcff")], ids=["number", "text"])
async def test_request_that_no_message_can_hold_is_refused_before_it_is_sent(ask):
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        with pytest.raises(InputError, match="64 bits"):
            await call(client, server, Echo.rpc_say, ask)
        assert client.links() == ()


async def test_reply_that_is_too_long_is_an_error_of_its_own():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        error = await caught(call(client, server, Echo.rpc_say, Ask("x" * 1000, size=2000)))
        assert isinstance(error, EngineError)
        assert await call(client, server, Echo.rpc_say, Ask("short")) == Answer("short")


async def test_large_requests_and_replies_pass():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        text = "x" * (MAX_BODY_BYTES - 100)
        assert (await call(client, server, Echo.rpc_say, Ask(text))).text == text


async def test_peer_of_another_network_is_named_at_the_dialler():
    async with World() as world, World() as other:
        other.memory = world.memory
        server, stranger = await world.peer(Role.AUTH, Echo()), await other.peer()
        error = await caught(call(stranger, server, Echo.rpc_say, Ask()))
        assert isinstance(error, TrustError)
        assert "network" in str(error)


async def test_nobody_there_is_a_typed_error():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        contact = server.contact
        await server.stop()
        error = await caught(client.call(contact, Echo.rpc_say, Ask(), timeout_s=1))
        assert isinstance(error, PeerUnreachableError)


async def test_calls_wait_for_nothing_when_the_link_is_lost():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        waiting = [
            asyncio.create_task(caught(call(client, server, Echo.rpc_wait, Ask())))
            for _ in range(3)
        ]
        await until(lambda: echo.started == 3)
        await server.stop()
        assert {type(await error) for error in waiting} == {LinkClosedError}


async def test_thousand_calls_at_once_are_all_answered():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        replies = await asyncio.gather(
            *(call(client, server, Echo.rpc_say, Ask(count=n)) for n in range(1000))
        )
        assert [reply.number for reply in replies] == list(range(1000))


async def test_stopping_peer_finishes_what_runs_and_refuses_what_is_new():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        running = asyncio.create_task(call(client, server, Echo.rpc_wait, Ask("done")))
        await until(lambda: echo.started == 1)
        stopping = asyncio.create_task(server.stop(grace_s=10))
        await settled()
        error = await caught(call(client, server, Echo.rpc_say, Ask()))
        assert isinstance(error, PeerUnreachableError)
        echo.gate.set()
        assert await running == Answer("done")
        await asyncio.wait_for(stopping, 5)


async def test_ping_measures_a_round_trip():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        assert client.rtt(server.peer_id) is None
        assert await client.ping(server.contact) >= 0
        assert client.rtt(server.peer_id) is not None


async def test_answer_that_comes_as_its_link_ends_is_no_fault(caplog):
    for turns in range(12):
        async with World() as world:
            echo = Echo()
            there = await world.peer(Role.GATEWAY, echo)
            here = await world.peer()
            call = asyncio.ensure_future(
                here.call(there.contact, Echo.rpc_wait, Ask("hi"), timeout_s=5)
            )
            await until(lambda echo=echo: echo.started == 1)
            echo.gate.set()
            await settled(turns)
            (channel,) = here._links.all
            channel.end(LinkClosedError("lost"), lost=True)
            await settled()
            await asyncio.gather(call, return_exceptions=True)
    assert caplog.records == []
