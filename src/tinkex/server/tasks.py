"""Background tasks that somebody owns.

Owns the tasks' lives: none is lost to the garbage collector, none outlives the server, and an
exception in one is reported and stops no other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


_GRACE_SECONDS = 1.0


class Tasks:
    """The tasks of one server.

    Args:
        on_error: told of an exception that ended a task.
    """

    def __init__(self, *, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Run `work` in the background."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finished(self) -> None:
        """Wait until nothing runs any more."""
        while self._running:
            await asyncio.wait(self._running)

    async def stop(self) -> None:
        """Let what runs come to its end, cancel what does not within a second, and wait for it.

        A task that is cancelled within the database leaves its thread with an answer for nobody.
        """
        if self._running:
            await asyncio.wait(self._running, timeout=_GRACE_SECONDS)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)
