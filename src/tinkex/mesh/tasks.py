"""Background tasks that somebody owns.

Owns the tasks' lives: none is lost to the garbage collector, none outlives its owner, and an
exception in one is reported and stops no other.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any, cast

from tinkex._clock import Clock

FIRST_PAUSE_S = 1.0
"""Before endless work that failed is begun anew; twice as long each time."""
LONGEST_PAUSE_S = 60.0


class Tasks:
    """The tasks of one owner. Lives on one event loop.

    Args:
        on_error: told of an exception that ended a task.
    """

    def __init__(self, *, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._running: dict[asyncio.Task[None], None] = {}  # in order: simulations repeat
        self._stopping = False

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run `work` in the background; while the owner stops, it is cancelled like the rest."""
        return self._own(asyncio.get_running_loop().create_task(work, name=name))

    def keep(
        self, work: Callable[[], Coroutine[Any, Any, None]], *, name: str, clock: Clock
    ) -> asyncio.Task[None]:
        """Run endless work in the background: where it fails it is begun anew, after a pause.

        What a worker does again and again must not end with the first exception that nobody
        thought of: it would go on without it, until it is restarted.
        """
        return self.spawn(self._kept(work, clock), name=name)

    async def _kept(self, work: Callable[[], Coroutine[Any, Any, None]], clock: Clock) -> None:
        pause = FIRST_PAUSE_S
        while True:
            began = clock.monotonic()
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - as of every other task
                self._on_error(error)
            else:
                return
            if clock.monotonic() - began >= LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            await clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _own(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._running[task] = None
        task.add_done_callback(self._ended)
        if self._stopping:
            task.cancel()
        return task

    def begin(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None] | None:
        """Run `work` here up to where it first waits, and the rest in the background.

        That saves it a turn of the event loop. Until it waits it runs in no task, see `own_task`;
        where this is called within a task, it runs in the background from its first step.

        Returns:
            The task of the rest; None: it is done.
        """
        if asyncio.current_task() is not None:
            return self.spawn(work, name=name)
        context = copy_context()
        try:
            waits_for = context.run(work.send, None)
        except (StopIteration, asyncio.CancelledError):
            return None
        except Exception as error:  # noqa: BLE001 - as of every other task
            self._on_error(error)
            return None
        rest = cast("Coroutine[Any, Any, None]", _Rest(work, waits_for))
        return self._own(asyncio.get_running_loop().create_task(rest, name=name, context=context))

    async def finished(self) -> None:
        """Wait until nothing runs any more."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def stop(self) -> None:
        """Cancel what runs and wait for its end, and that of what it spawns in ending.

        Call it from no task of these: it would wait for itself.
        """
        self._stopping = True
        try:
            for task in list(self._running):
                task.cancel()
            await self.finished()
        finally:
            self._stopping = False

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)


class _Rest:
    """A coroutine that was begun, as its task sees it: what it waits for comes first."""

    __slots__ = ("close", "send", "throw")

    send: Callable[[None], object]
    throw: Callable[[BaseException], object]

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: object) -> None:
        def first(_: None) -> object:
            self.send, self.throw = work.send, work.throw
            return waits_for

        def cut_short(error: BaseException) -> object:
            self.send, self.throw = work.send, work.throw
            return work.throw(error)

        self.send, self.throw = first, cut_short
        self.close = work.close

    def __await__(self) -> Generator[Any, Any, None]:
        """Tell asyncio that this is a coroutine; a task alone drives it."""
        raise TypeError("the rest of what was begun is its task's alone")


async def own_task() -> None:
    """Wait until a task runs what awaits this. For what asks which one, early in `Tasks.begin`."""
    if asyncio.current_task() is None:
        await let_others_run()


@types.coroutine
def let_others_run() -> Generator[None, None, None]:
    """Give every task that is ready one turn. For loops that might never wait for anything."""
    yield
