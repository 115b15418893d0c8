"""A bound on waiting, on a clock moved by hand."""

import asyncio

import pytest

from tinkex._timers import Timers
from tinkex.errors import PeerTimeoutError
from tinkex.mesh.rpc.deadline import Deadline, Patience
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
    async with Deadline(timers, 1.0, late):
        pass
    timers._clock.advance(5)
    await asyncio.sleep(0)  # noqa: TID251 - no time passes


async def test_waiting_ends_at_the_end_of_the_time(timers):
    async def wait():
        async with Deadline(timers, 1.0, late):
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
        async with Deadline(timers, 1.0, late):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancel_at_the_very_end_of_the_time_stays_a_cancel(timers):
    async def wait():
        async with Deadline(timers, 1.0, late) as deadline:
            task.cancel()
            deadline._pass()
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_error_of_the_block_stays_what_it_is(timers):
    async def wait():
        async with Deadline(timers, 1.0, late):
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("x")

    task = asyncio.create_task(wait())
    await settled()
    timers._clock.advance(1.1)
    with pytest.raises(KeyError):
        await task


class Moved:
    """A patience whose ends are counted, on a clock moved by hand."""

    def __init__(self, timers):
        self.clock = timers._clock
        self.began = self.clock.monotonic()
        self.fired = []
        self.patience = Patience(timers, self.clock, lambda: self.fired.append(self.now))

    @property
    def now(self):
        return round(self.clock.monotonic() - self.began, 3)

    def until(self, moment):
        self.patience.until(self.began + moment)

    async def pass_time(self, seconds):
        for _ in range(round(seconds / 0.125)):
            self.clock.advance(0.125)  # a sum of such has no error
            await settled()


async def test_patience_ends_once_when_its_moment_comes(timers):
    moved = Moved(timers)
    moved.until(1.0)
    await moved.pass_time(0.875)
    assert moved.fired == []
    await moved.pass_time(5)
    assert moved.fired == [1.0]


async def test_moment_that_is_moved_on_is_waited_for_to_its_last_place(timers):
    moved = Moved(timers)
    for moment in (1.0, 2.0, 2.5):
        moved.until(moment)
    await moved.pass_time(1.5)  # the timer has looked once
    moved.until(3.0)
    await moved.pass_time(1.375)
    assert moved.fired == []
    await moved.pass_time(3)
    assert moved.fired == [3.0]


async def test_moment_that_is_moved_back_is_not_missed(timers):
    moved = Moved(timers)
    moved.until(60.0)
    moved.until(0.5)
    await moved.pass_time(0.625)
    assert moved.fired == [0.5]
    await moved.pass_time(60)
    assert moved.fired == [0.5]


async def test_patience_that_ended_can_be_set_anew(timers):
    moved = Moved(timers)
    moved.until(0.25)
    await moved.pass_time(1)
    moved.until(1.5)
    await moved.pass_time(1)
    assert moved.fired == [0.25, 1.5]


async def test_patience_that_nobody_needs_any_more_does_not_end(timers):
    moved = Moved(timers)
    moved.until(1.0)
    moved.patience.end()
    moved.patience.end()
    await moved.pass_time(2)
    assert moved.fired == []
    moved.until(2.5)
    await moved.pass_time(1)
    assert moved.fired == [2.5]


async def test_moment_that_has_passed_comes_at_once(timers):
    moved = Moved(timers)
    await moved.pass_time(1)
    moved.until(0.5)
    await settled()
    assert moved.fired == [1.0]


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
