"""A bound on waiting, on a clock moved by hand."""

import asyncio

import pytest

from tinkex._timers import Timers
from tinkex.errors import PeerTimeoutError
from tinkex.mesh.rpc.deadline import Deadline
from tinkex.testing import VirtualClock


@pytest.fixture
async def timers():
    timers = Timers(VirtualClock(), on_error=pytest.fail)
    timers.start()
    yield timers
    await timers.stop()


def late():
    return PeerTimeoutError("late")


async def test_block_that_ends_in_time_is_left_alone(timers):
    with Deadline(timers, 1.0, late):
        pass
    timers._clock.advance(5)
    await asyncio.sleep(0)  # noqa: TID251 - no time passes


async def test_waiting_ends_at_the_end_of_the_time(timers):
    async def wait():
        with Deadline(timers, 1.0, late):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await settled()
    timers._clock.advance(0.9)
    await settled()
    assert not task.done()
    timers._clock.advance(0.2)
    with pytest.raises(PeerTimeoutError):
        await task


async def test_somebody_elses_cancel_stays_a_cancel(timers):
    async def wait():
        with Deadline(timers, 1.0, late):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancel_at_the_very_end_of_the_time_stays_a_cancel(timers):
    async def wait():
        with Deadline(timers, 1.0, late) as deadline:
            task.cancel()
            deadline._pass()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_error_of_the_block_stays_what_it_is(timers):
    async def wait():
        with Deadline(timers, 1.0, late):
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("x")

    task = asyncio.create_task(wait())
    await settled()
    timers._clock.advance(1.1)
    with pytest.raises(KeyError):
        await task


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
