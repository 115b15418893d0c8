"""Deadlines: on time, in order, cancelled for good, and nothing wakes an idle server."""

import asyncio
from contextvars import ContextVar
from functools import partial

import pytest

from tinkex._clock import SystemClock
from tinkex._timers import Timers
from tinkex.testing.clock import VirtualClock


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
async def timers(clock):
    faults = []
    timers = Timers(clock, on_error=faults.append)
    timers.start()
    yield timers
    await timers.stop()
    assert faults == []


@pytest.fixture
def advance(clock):
    async def move(seconds):
        await settled()
        clock.advance(seconds)
        await settled()

    return move


async def settled():
    for _ in range(30):
        await asyncio.sleep(0)  # noqa: TID251 - lets others run, waits for nothing


async def test_call_comes_at_its_time_and_once(timers, advance):
    calls = []
    timers.call_later(10, partial(calls.append, "a"))
    await advance(9.9)
    assert calls == []
    await advance(0.2)
    assert calls == ["a"]
    await advance(100)
    assert calls == ["a"]


async def test_calls_come_in_the_order_of_their_deadlines(timers, advance):
    calls = []
    for delay in (30, 10, 20):
        timers.call_later(delay, partial(calls.append, delay))
    await advance(30)
    assert calls == [10, 20, 30]


async def test_earlier_deadline_set_later_is_not_missed(timers, advance):
    calls = []
    timers.call_later(100, partial(calls.append, "late"))
    await advance(1)
    timers.call_later(5, partial(calls.append, "early"))
    await advance(5)
    assert calls == ["early"]


async def test_cancelled_call_never_comes(timers, advance):
    calls = []
    timer = timers.call_later(10, partial(calls.append, "x"))
    timer.cancel()
    timer.cancel()
    await advance(20)
    assert calls == []
    assert timer.cancelled


async def test_idle_timers_ask_for_no_sleep(timers, advance, clock):
    await advance(1000)
    assert clock.sleeps == []


async def test_many_cancelled_deadlines_do_not_pile_up(timers, advance):
    for _ in range(10_000):
        timers.call_later(30, list).cancel()
    assert len(timers._heap) < 500
    await advance(31)


async def test_failing_call_is_reported_and_stops_no_other(advance, clock):
    faults, calls = [], []
    timers = Timers(clock, on_error=faults.append)
    timers.start()
    timers.call_later(1, lambda: 1 / 0)
    timers.call_later(2, partial(calls.append, "after"))
    await advance(3)
    assert [type(fault) for fault in faults] == [ZeroDivisionError]
    assert calls == ["after"]
    await timers.stop()


async def test_later_deadline_and_a_cancelled_one_cost_no_sleep(timers, advance, clock):
    timers.call_later(10, list)
    await advance(0)
    for delay in (20, 10, 11):
        timers.call_later(delay, list).cancel()
    await advance(1)
    assert clock.sleeps == [10]
    timers.call_later(5, list)
    await advance(1)
    assert clock.sleeps == [10, 5]


async def test_timer_that_sets_another_is_followed_by_it(timers, advance):
    calls = []
    timers.call_later(1, lambda: timers.call_later(0, partial(calls.append, "now")))
    timers.call_later(2, lambda: timers.call_later(1, partial(calls.append, "later")))
    await advance(1)
    assert calls == ["now"]
    await advance(1)
    await advance(1)
    assert calls == ["now", "later"]


async def test_call_knows_nothing_of_who_set_the_timer(clock, advance):
    whose = ContextVar("whose", default="nobody's")
    found = []
    timers = Timers(clock, on_error=found.append)
    timers.start()
    whose.set("a request's")
    timers.call_later(1, lambda: found.append(whose.get()))
    await advance(1)
    assert found == ["nobody's"]
    await timers.stop()


async def test_stopping_without_a_start_is_harmless():
    await Timers(VirtualClock(), on_error=print).stop()


async def test_by_the_machines_clock_calls_come_in_order_and_no_task_waits_for_them():
    timers = Timers(SystemClock(), on_error=print)
    timers.start()
    came = asyncio.Queue()
    timers.call_later(3600, partial(came.put_nowait, "much later"))
    timers.call_later(0.02, partial(came.put_nowait, "later"))
    timers.call_later(0.01, partial(came.put_nowait, "soon"))
    timers.call_later(0.0, partial(came.put_nowait, "cancelled")).cancel()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [await came.get(), await came.get()] == ["soon", "later"]
    await timers.stop()
    assert came.empty()


async def test_by_the_machines_clock_nothing_comes_after_the_stop():
    timers = Timers(SystemClock(), on_error=print)
    timers.start()
    came = []
    timers.call_later(0.0, partial(came.append, "late"))
    await timers.stop()
    await SystemClock().sleep(0.01)
    assert came == []
