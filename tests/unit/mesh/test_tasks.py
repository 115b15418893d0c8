"""Tasks with an owner: reported when they fail, cancelled and awaited when it stops."""

import asyncio
from contextvars import ContextVar
from itertools import pairwise

import pytest

from tinkex.mesh.tasks import LONGEST_PAUSE_S, Tasks, let_others_run, own_task
from tinkex.testing.clock import VirtualClock


async def forever():
    await asyncio.Event().wait()


async def test_failed_task_is_reported_and_stops_no_other():
    errors = []
    tasks = Tasks(on_error=errors.append)

    async def fail():
        raise KeyError("x")

    tasks.spawn(fail(), name="fails")
    other = tasks.spawn(forever(), name="goes on")
    while not errors:
        await let_others_run()
    assert [type(error) for error in errors] == [KeyError]
    assert not other.done()
    assert len(tasks) == 1
    await tasks.stop()
    assert len(tasks) == 0


async def test_endless_work_that_fails_is_begun_anew_after_ever_longer_pauses():
    clock, errors, begun = VirtualClock(), [], []
    tasks = Tasks(on_error=errors.append)

    async def work():
        begun.append(clock.monotonic())
        if len(begun) == 9:
            await clock.sleep(LONGEST_PAUSE_S)
        if len(begun) < 11:
            raise KeyError("x")
        await forever()

    start = clock.monotonic()
    tasks.keep(work, name="endless", clock=clock)
    while len(begun) < 11:
        await let_others_run()
        clock.advance(0.5)
    pauses = [later - earlier for earlier, later in pairwise(begun)]
    assert begun[0] == start
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60 + 1, 2], abs=2)
    assert [type(error) for error in errors] == [KeyError] * 10
    await tasks.stop()
    assert len(tasks) == 0


async def test_endless_work_that_ends_or_is_cancelled_is_not_begun_anew():
    clock, errors, begun = VirtualClock(), [], []
    tasks = Tasks(on_error=errors.append)

    async def work():
        begun.append(clock.monotonic())

    await tasks.keep(work, name="ends", clock=clock)
    assert len(begun) == 1
    tasks.keep(forever, name="goes on", clock=clock)
    await let_others_run()
    await tasks.stop()
    assert (len(tasks), errors) == (0, [])


async def test_stop_awaits_the_end_of_what_it_cancels_and_of_what_that_spawns():
    tasks = Tasks(on_error=lambda error: None)
    ended = []

    async def last():
        try:
            await forever()
        finally:
            ended.append("last")

    async def work():
        try:
            await forever()
        finally:
            tasks.spawn(last(), name="last")
            await let_others_run()
            ended.append("work")

    tasks.spawn(work(), name="work")
    await let_others_run()
    await tasks.stop()
    assert "work" in ended
    assert len(tasks) == 0


async def test_finished_waits_for_all():
    tasks = Tasks(on_error=lambda error: None)
    gate = asyncio.Event()

    async def work():
        await gate.wait()

    tasks.spawn(work(), name="work")
    waiting = asyncio.ensure_future(tasks.finished())
    await let_others_run()
    assert not waiting.done()
    gate.set()
    await waiting
    assert len(tasks) == 0


# --- begun where it is made ---------------------------------------------------

NUMBER = ContextVar("NUMBER", default=0)


class Begun:
    """Work that is begun from a callback of the event loop, as a handler is by its link."""

    def __init__(self, work):
        self.errors = []
        self.tasks = Tasks(on_error=self.errors.append)
        self.task = "not begun"
        asyncio.get_running_loop().call_soon(self._begin, work)

    def _begin(self, work):
        self.task = self.tasks.begin(work, name="begun")

    async def until_begun(self):
        while self.task == "not begun":
            await let_others_run()
        return self


async def test_work_that_waits_for_nothing_is_done_at_once():
    done = []

    async def work():
        done.append(asyncio.current_task())

    begun = await Begun(work()).until_begun()
    assert (begun.task, done, len(begun.tasks), begun.errors) == (None, [None], 0, [])


async def test_error_before_work_first_waits_is_reported():
    async def work():
        raise KeyError("x")

    begun = await Begun(work()).until_begun()
    assert begun.task is None
    assert [type(error) for error in begun.errors] == [KeyError]


async def test_cancellation_that_work_raises_before_it_waits_is_no_error():
    async def work():
        raise asyncio.CancelledError

    begun = await Begun(work()).until_begun()
    assert (begun.task, begun.errors) == (None, [])


async def test_rest_of_work_gets_what_it_waits_for():
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
    got = []

    async def work():
        got.append(await first)
        try:
            await second
        except KeyError as error:
            got.append(error)
        await let_others_run()
        got.append("end")

    begun = await Begun(work()).until_begun()
    assert got == []
    first.set_result("first")  # before its task took its first step
    await let_others_run()
    await let_others_run()
    assert got == ["first"]
    second.set_exception(KeyError("second"))
    await begun.task
    assert [str(each) for each in got] == ["first", "'second'", "end"]
    assert begun.errors == []


async def test_error_in_the_rest_is_reported():
    async def work():
        await let_others_run()
        raise KeyError("x")

    begun = await Begun(work()).until_begun()
    await asyncio.wait([begun.task])
    await let_others_run()
    assert [type(error) for error in begun.errors] == [KeyError]


async def test_work_cancelled_before_its_tasks_first_step_is_told_where_it_waits():
    told = []

    async def work():
        try:
            await forever()
        except asyncio.CancelledError:
            told.append("cancelled")
        await let_others_run()
        told.append("goes on")
        await forever()

    begun = Begun(work())
    asyncio.get_running_loop().call_soon(lambda: begun.task.cancel())  # noqa: PLW0108 - not begun
    while len(told) < 2:
        await let_others_run()
    assert told == ["cancelled", "goes on"]
    await begun.tasks.stop()
    assert begun.task.cancelled()


async def test_stop_ends_work_that_was_begun():
    ended = []

    async def work():
        try:
            await forever()
        finally:
            ended.append(True)

    begun = await Begun(work()).until_begun()
    await begun.tasks.stop()
    assert (ended, len(begun.tasks)) == ([True], 0)


async def test_work_has_one_context_of_its_own_from_begin_to_end():
    seen = []

    async def work():
        NUMBER.set(NUMBER.get() + 1)
        await let_others_run()
        seen.append(NUMBER.get())

    def both():
        for _ in range(2):
            begun._begin(work())
        seen.append(NUMBER.get())

    begun = Begun(work())
    asyncio.get_running_loop().call_soon(both)
    while len(seen) < 4:
        await let_others_run()
    assert seen == [0, 1, 1, 1]


async def test_work_can_ask_for_a_task_of_its_own():
    tasks_seen = []

    async def work():
        await own_task()
        tasks_seen.append(asyncio.current_task())
        before = len(tasks_seen)
        await own_task()  # has one: no turn goes by
        assert len(tasks_seen) == before

    begun = await Begun(work()).until_begun()
    await begun.task
    assert tasks_seen == [begun.task]


async def test_work_begun_within_a_task_runs_in_its_own():
    seen = []

    async def work():
        seen.append(asyncio.current_task())

    tasks = Tasks(on_error=lambda error: None)
    task = tasks.begin(work(), name="begun")
    assert seen == []
    await task
    assert seen == [task]
