"""Background tasks that somebody owns.

Owns the tasks' lives: none is lost to the garbage collector, none outlives its owner, and an
exception in one is reported and stops no other.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any


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
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running[task] = None
        task.add_done_callback(self._ended)
        if self._stopping:
            task.cancel()
        return task

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


@types.coroutine
def let_others_run() -> Generator[None, None, None]:
    """Give every task that is ready one turn. For loops that might never wait for anything."""
    yield
