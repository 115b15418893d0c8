"""Every deadline of a server or a peer, in one heap, watched by one task.

Owns waiting; knows nothing of what ends at a deadline. One task sleeps until the earliest deadline
and is woken when an earlier one comes: an idle process wakes nobody, and a poll costs no task.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex._clock import Clock

_COMPACT_ABOVE = 64


class Timer:
    """One scheduled call; `cancel` it when what it waits for came first."""

    __slots__ = ("_action", "_order", "_owner", "deadline")

    def __init__(
        self, deadline: float, order: int, action: Callable[[], None], owner: Timers
    ) -> None:
        self.deadline = deadline
        """Seconds on the clock's monotonic scale."""
        self._order = order
        self._action: Callable[[], None] | None = action
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
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch; call it on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="timers")

    async def stop(self) -> None:
        """End the watch; timers left do not fire."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._heap.clear()

    def call_later(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Call `action` on the event loop after `seconds`."""
        self._count += 1
        timer = Timer(self._clock.monotonic() + seconds, self._count, action, self)
        heapq.heappush(self._heap, timer)
        if self._heap[0] is timer:
            self._wake.set()
        return timer

    def _dropped(self) -> None:
        self._dead += 1
        if self._dead > _COMPACT_ABOVE and self._dead * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if not timer.cancelled]
            heapq.heapify(self._heap)
            self._dead = 0

    async def _watch(self) -> None:
        while True:
            self._fire_due()
            self._wake.clear()
            if not self._heap:
                await self._wake.wait()
                continue
            await self._sleep_until(self._heap[0].deadline)

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

    async def _sleep_until(self, deadline: float) -> None:
        """Wait for `deadline` or for an earlier timer, whichever comes first."""
        sleeper = asyncio.ensure_future(
            self._clock.sleep(max(0.0, deadline - self._clock.monotonic()))
        )
        waker = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeper, waker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sleeper, waker):
                task.cancel()
            await asyncio.gather(sleeper, waker, return_exceptions=True)
