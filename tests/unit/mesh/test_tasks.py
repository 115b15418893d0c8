"""Tasks with an owner: reported when they fail, cancelled and awaited when it stops."""

import asyncio

from tinkex.mesh.tasks import Tasks, let_others_run


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
