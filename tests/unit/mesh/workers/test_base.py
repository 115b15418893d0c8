"""B1, B8: start, stop, double start, stop while starting, failed start."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from tinkex.errors import ConfigurationError, MeshError
from tinkex.mesh.workers.base import Worker, WorkerState


class Scripted(Worker):
    """Opens three things; `gate` holds it before the third, `fails` makes that one fail."""

    def __init__(self, *, gate=None, fails=False, closing=None):
        super().__init__("scripted")
        self.gate, self.fails, self.closing = gate, fails, closing
        self.log = []
        self.begun = asyncio.Event()

    @asynccontextmanager
    async def part(self, name):
        self.log.append(f"+{name}")
        try:
            yield
        finally:
            self.log.append(f"-{name}")
            if self.closing == name:
                raise OSError(name)

    async def open(self, stack):
        await stack.enter_async_context(self.part("a"))
        await stack.enter_async_context(self.part("b"))
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise ConfigurationError("no such address")
        await stack.enter_async_context(self.part("c"))

    async def drain(self, grace_s):
        self.log.append(f"drain {grace_s}")


WHOLE = ["+a", "+b", "+c", "-c", "-b", "-a"]


async def test_started_worker_is_ready_and_stops_backwards():
    worker = Scripted()
    assert worker.state is WorkerState.NEW
    await worker.start()
    await worker.wait_ready()
    assert worker.ready
    await worker.stop(2.0)
    assert worker.log == ["+a", "+b", "+c", "drain 2.0", "-c", "-b", "-a"]
    assert worker.state is WorkerState.STOPPED


async def test_second_start_is_refused_by_name_and_changes_nothing():
    worker = Scripted()
    async with worker:
        with pytest.raises(MeshError, match="scripted worker is ready already"):
            await worker.start()
        assert worker.ready
    with pytest.raises(MeshError, match="stopped already"):
        await worker.start()


async def test_failed_start_closes_what_was_opened_and_says_why():
    worker = Scripted(fails=True)
    waiting = asyncio.create_task(worker.wait_ready())
    with pytest.raises(ConfigurationError, match="no such address"):
        await worker.start()
    assert worker.log == ["+a", "+b", "-b", "-a"]
    with pytest.raises(MeshError, match="will not be ready"):
        await waiting
    await worker.stop()
    assert worker.log == ["+a", "+b", "-b", "-a"]


async def test_stop_while_starting_cancels_the_start():
    worker = Scripted(gate=asyncio.Event())
    starting = asyncio.create_task(worker.start())
    await worker.begun.wait()
    with pytest.raises(MeshError, match="starting already"):
        await worker.start()
    await worker.stop()
    assert worker.log == ["+a", "+b", "-b", "-a"]
    with pytest.raises(MeshError, match="stopped while it started"):
        await starting
    assert worker.state is WorkerState.STOPPED


async def test_cancelled_start_closes_what_was_opened():
    worker = Scripted(gate=asyncio.Event())
    starting = asyncio.create_task(worker.start())
    await worker.begun.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert worker.log == ["+a", "+b", "-b", "-a"]
    assert worker.state is WorkerState.STOPPED


async def test_stop_in_the_last_step_of_the_start_still_closes_everything():
    gate = asyncio.Event()
    worker = Scripted(gate=gate)
    starting = asyncio.create_task(worker.start())
    await worker.begun.wait()
    gate.set()
    worker._starting.add_done_callback(
        lambda _: stopping.append(asyncio.ensure_future(worker.stop()))
    )
    stopping = []
    outcome = await asyncio.gather(starting, return_exceptions=True)
    await asyncio.gather(*stopping)
    assert worker.log[:3] == WHOLE[:3]
    assert worker.log[-3:] == WHOLE[-3:]
    assert outcome == [None] or isinstance(outcome[0], MeshError)


async def test_stop_before_start_and_stop_twice_are_harmless():
    worker = Scripted()
    await worker.stop()
    await worker.stop()
    assert worker.log == []
    with pytest.raises(MeshError, match="stopped already"):
        await worker.start()


async def test_concurrent_stops_all_wait_for_the_end():
    worker = Scripted()
    await worker.start()
    await asyncio.gather(*(worker.stop() for _ in range(5)))
    assert worker.log == ["+a", "+b", "+c", "drain 0.0", "-c", "-b", "-a"]


async def test_part_that_fails_to_close_stops_no_other_from_closing():
    worker = Scripted(closing="b")
    await worker.start()
    with pytest.raises(OSError, match="b"):
        await worker.stop()
    assert worker.log[-2:] == ["-b", "-a"]
    assert worker.state is WorkerState.STOPPED
    await worker.stop()
