"""Bounds on how long something may wait, by the injected clock.

`Deadline` is as `asyncio.timeout`, whose time is the event loop's and so moves in every test;
`Patience` is for what waits often, and costs next to nothing each time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tinkex._clock import Clock
from tinkex._timers import Timer, Timers
from tinkex.mesh.tasks import own_task


class Deadline:
    """`async with Deadline(...)`: what the block awaits is cancelled at the end of the time.

    Args:
        timers: those of the event loop.
        seconds: from entering the block.
        error: makes what is raised then.
    """

    __slots__ = ("_before", "_error", "_passed", "_seconds", "_task", "_timer", "_timers")

    def __init__(self, timers: Timers, seconds: float, error: Callable[[], Exception]) -> None:
        self._timers = timers
        self._seconds = seconds
        self._error = error
        self._passed = False
        self._timer: Timer | None = None
        self._task: asyncio.Task[object] | None = None
        self._before = 0

    async def __aenter__(self) -> Self:
        await own_task()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._timer = self._timers.call_later(self._seconds, self._pass)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        assert self._task is not None
        assert self._timer is not None
        self._timer.cancel()
        # Somebody else may have cancelled the task too: then that is what happens.
        alone = self._passed and self._task.uncancel() <= self._before
        if alone and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise self._error() from None

    def _pass(self) -> None:
        assert self._task is not None
        self._passed = True
        self._task.cancel()


class Patience:
    """A moment that is moved on again and again: one timer, which looks where it is when it fires.

    Args:
        timers: those of the event loop.
        clock: theirs.
        action: called when the moment has come.
    """

    __slots__ = ("_action", "_clock", "_moment", "_timer", "_timers")

    def __init__(self, timers: Timers, clock: Clock, action: Callable[[], None]) -> None:
        self._timers = timers
        self._clock = clock
        self._action = action
        self._moment = 0.0
        self._timer: Timer | None = None

    def until(self, moment: float) -> None:
        """Set the moment, in monotonic seconds."""
        self._moment = moment
        if self._timer is None or self._timer.deadline > moment:
            self.end()
            left = max(0.0, moment - self._clock.monotonic())
            self._timer = self._timers.call_later(left, self._look)

    def end(self) -> None:
        """Wait for nothing any more. Harmless twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._clock.monotonic() < self._moment:
            self.until(self._moment)
        else:
            self._action()
