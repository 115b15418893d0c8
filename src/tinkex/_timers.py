"""Every deadline of a server or a peer, in one heap, of which the earliest is waited for.

Owns waiting; knows nothing of what ends at a deadline. An idle process wakes nobody, and a poll
costs no task. A deadline that is later than another, or cancelled, costs a place in the heap alone.
By the machine's own clock the event loop itself waits; by any other clock a task does, which gives
way to another when an earlier deadline comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import math
from typing import TYPE_CHECKING

from tinkex._clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex._clock import Clock

_COMPACT_ABOVE = 64


class Timer:
    """One scheduled call; `cancel` it when what it waits for came first."""

    __slots__ = ("_action", "_order", "_owner", "deadline")

    def __init__(
        self, deadline: float, order: int, action: Callable[[], object], owner: Timers
    ) -> None:
        self.deadline = deadline
        """Seconds on the clock's monotonic scale."""
        self._order = order
        self._action: Callable[[], object] | None = action
        self._owner = owner

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self._order) < (other.deadline, other._order)

    @property
    def cancelled(self) -> bool:
        """Whether it will not call: cancelled, or called already."""
        return self._action is None

    def cancel(self) -> None:
        """Forget the call; harmless when it was made or cancelled before."""
        if self._action is not None:
            self._action = None
            self._owner._dropped()  # noqa: SLF001 - the two classes are one mechanism

    def fire(self) -> None:
        """Make the call, once."""
        action, self._action = self._action, None
        if action is not None:
            action()


class Timers:
    """Calls functions at given times. Lives on one event loop.

    Args:
        clock: tells and waits for time.
        on_error: told of an exception out of a timer's function; the other timers go on.
    """

    def __init__(self, clock: Clock, *, on_error: Callable[[BaseException], None]) -> None:
        self._clock = clock
        self._on_error = on_error
        self._heap: list[Timer] = []
        self._dead = 0
        self._count = 0
        self._running = False
        self._context = contextvars.Context()
        """That of the start: what a timer calls knows nothing of who set the timer."""
        self._sleeper: asyncio.Task[None] | asyncio.TimerHandle | None = None
        self._until = math.inf
        """When the sleeper wakes."""

    def start(self) -> None:
        """Begin to watch; call it on the event loop."""
        self._running = True
        self._context = contextvars.copy_context()
        self._sleep_until_first()

    async def stop(self) -> None:
        """End the watch; timers left do not fire."""
        self._running = False
        self._heap.clear()
        sleeper, self._sleeper = self._sleeper, None
        if sleeper is not None:
            sleeper.cancel()
        if isinstance(sleeper, asyncio.Task):
            with contextlib.suppress(asyncio.CancelledError):
                await sleeper

    def call_later(self, seconds: float, action: Callable[[], object]) -> Timer:
        """Call `action` on the event loop after `seconds`."""
        self._count += 1
        timer = Timer(self._clock.monotonic() + seconds, self._count, action, self)
        heapq.heappush(self._heap, timer)
        if timer.deadline < self._until:
            self._sleep_until_first()
        return timer

    def _dropped(self) -> None:
        self._dead += 1
        if self._dead > _COMPACT_ABOVE and self._dead * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if not timer.cancelled]
            heapq.heapify(self._heap)
            self._dead = 0

    def _fire_due(self) -> None:
        now = self._clock.monotonic()
        while self._heap and (self._heap[0].cancelled or self._heap[0].deadline <= now):
            timer = heapq.heappop(self._heap)
            if timer.cancelled:
                self._dead = max(0, self._dead - 1)
                continue
            try:
                timer.fire()
            except Exception as error:  # noqa: BLE001 - one bad callback must not stop all deadlines
                self._on_error(error)

    def _sleep_until_first(self) -> None:
        """Wake at the earliest deadline; what would wake later is ended."""
        if self._sleeper is not None:
            self._sleeper.cancel()
            self._sleeper = None
        self._until = math.inf
        if self._running and self._heap:
            self._until = self._heap[0].deadline
            loop = asyncio.get_running_loop()
            if isinstance(self._clock, SystemClock):
                delay = self._until - self._clock.monotonic()
                self._sleeper = loop.call_later(delay, self._wake, context=self._context)
            else:
                self._sleeper = loop.create_task(self._wait(), name="timers", context=self._context)

    async def _wait(self) -> None:
        await self._clock.sleep(max(0.0, self._until - self._clock.monotonic()))
        self._wake()

    def _wake(self) -> None:
        self._sleeper = None
        self._until = -math.inf  # what is added meanwhile is looked at below
        self._fire_due()
        self._sleep_until_first()
