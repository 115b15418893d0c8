"""Calls of one link whose callers wait for different times: each is ended at its own."""

import pytest
from mesh_rpc import Answer, Ask, Echo, World, raw_link, settled, until

from tinkex.errors import LinkClosedError
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.messages import Cancel, Failed, Request, Response, decode_frame, encode_frame
from tinkex.mesh.rpc.service import Call, callable_by

SOON, LATE, LATER = 300, 600, 900
"""Milliseconds: less than after which a link without signs of life is lost."""


def wait(number, timeout_ms):
    return Request(number, "echo.wait", timeout_ms, 0, "", b"\x80")


class Calls:
    """What came of the calls of a link."""

    def __init__(self, world, link):
        self.world, self.link = world, link
        self.failed, self.done = {}, []

    async def send(self, *messages):
        await self.link.send(encode_frame(list(messages)))
        await settled()

    async def after(self, seconds):
        """Let so many seconds pass; the calls that have failed in all."""
        await self.world.pass_time(seconds)
        while (frame := self.link.receive_now()) is not None:
            for message in decode_frame(frame):
                if isinstance(message, Failed):
                    self.failed[message.id] = message.error.code
                elif isinstance(message, Response):
                    self.done.append(message.id)
        return sorted(self.failed)


@pytest.fixture
async def echo():
    return Echo()


@pytest.fixture
async def calls(echo):
    async with World() as world, raw_link(world, echo) as (_, link):
        yield Calls(world, link)


@pytest.mark.parametrize("order", [(SOON, LATE, LATER), (LATER, LATE, SOON), (LATE, SOON, LATER)])
async def test_each_call_expires_at_its_own_time(calls, echo, order):
    numbers = {timeout_ms: number for number, timeout_ms in enumerate(order, 1)}
    await calls.send(*(wait(number, timeout_ms) for timeout_ms, number in numbers.items()))
    await until(lambda: echo.started == 3)
    assert await calls.after(0.25) == []
    assert await calls.after(0.1) == [numbers[SOON]]
    assert await calls.after(0.2) == [numbers[SOON]]
    assert await calls.after(0.1) == sorted([numbers[SOON], numbers[LATE]])
    assert await calls.after(0.2) == sorted([numbers[SOON], numbers[LATE]])
    assert await calls.after(0.1) == [1, 2, 3]
    assert len(set(calls.failed.values())) == 1
    assert (echo.cancelled, echo.finished, calls.done) == (3, 0, [])


async def test_later_call_with_an_earlier_deadline_does_not_wait_for_the_first(calls):
    await calls.send(wait(1, LATER))
    assert await calls.after(0.2) == []
    await calls.send(wait(2, SOON))
    assert await calls.after(0.25) == []
    assert await calls.after(0.1) == [2]
    assert await calls.after(0.3) == [2]
    assert await calls.after(0.1) == [1, 2]


async def test_call_after_all_others_have_expired_expires_too(calls):
    await calls.send(wait(1, SOON))
    assert await calls.after(0.35) == [1]
    await calls.send(wait(2, SOON))
    assert await calls.after(0.25) == [1]
    assert await calls.after(0.1) == [1, 2]


async def test_call_after_one_that_was_answered_is_not_ended_at_the_others_time(calls, echo):
    await calls.send(wait(1, SOON))
    await calls.send(Cancel(1))
    assert await calls.after(0.2) == [1]  # its last word, at once
    await calls.send(wait(2, SOON))
    assert await calls.after(0.25) == [1]
    echo.gate.set()
    assert await calls.after(0.05) == [1]
    assert calls.done == [2]


class Cutting(Echo):
    """Loses the link that called, before it first waits."""

    peers = None

    @callable_by(CERTIFIED)
    async def rpc_wait(self, request: Ask, call: Call) -> Answer:
        with self.counted():
            (channel,) = self.peers._links.all
            channel.end(LinkClosedError("lost meanwhile"), lost=True)
            await self.gate.wait()
        return Answer("")


async def test_handler_in_whose_first_step_its_link_is_lost_is_cancelled_where_it_waits():
    echo = Cutting()
    async with World() as world, raw_link(world, echo) as (server, link):
        echo.peers = server
        await link.send(encode_frame([wait(1, LATER)]))
        await until(lambda: echo.cancelled == 1)
        assert (echo.started, echo.finished) == (1, 0)


@pytest.mark.parametrize(("role", "seconds"), [(Role.CLIENT, 5.0), (Role.GATEWAY, 1.2)])
async def test_clients_calls_outlive_a_longer_silence_as_its_program_may_be_busy(
    echo, role, seconds
):
    async with World() as world, raw_link(world, echo, role) as (_, link):
        calls = Calls(world, link)
        await calls.send(wait(1, 60_000))
        await until(lambda: echo.started == 1)
        await world.pass_time(seconds - 0.1)
        assert echo.cancelled == 0
        await world.pass_time(0.6)
        assert echo.cancelled == 1
