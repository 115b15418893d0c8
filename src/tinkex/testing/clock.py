"""Time that tests move by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading

_EPOCH = 1_700_000_000.0


class VirtualClock:
    """A `Clock` that stands still until `advance`, or jumps over every sleep with `autojump`.

    Args:
        autojump: each sleep moves the time on at once, so nothing ever waits.
        start: the wall-clock time it shows at first, in seconds since the epoch.

    Attributes:
        sleeps: the length of every sleep asked for, in seconds, in order.
    """

    def __init__(self, *, autojump: bool = False, start: float = _EPOCH) -> None:
        self.sleeps: list[float] = []
        self._autojump = autojump
        self._start = start
        self._elapsed = 0.0
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._blocked = threading.Condition(self._lock)

    def now(self) -> float:
        """Return the virtual wall-clock time in seconds since the epoch."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Return the virtual seconds since the clock was made."""
        return self._elapsed

    @property
    def waiting(self) -> int:
        """How many asynchronous sleepers wait for the time to move."""
        with self._lock:
            return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until the time has moved on by `seconds`; other tasks run at least once."""
        with self._lock:
            self.sleeps.append(seconds)
            due = self._elapsed + max(seconds, 0.0)
            if self._autojump:
                self._elapsed = max(self._elapsed, due)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if due > self._elapsed:
                heapq.heappush(self._sleepers, (due, next(self._order), future))
            else:
                future.set_result(None)
        if future.done():
            await asyncio.sleep(0)  # noqa: TID251 - lets other tasks run, waits for nothing
        else:
            await future

    def sleep_sync(self, seconds: float) -> None:
        """Block this thread until the time has moved on by `seconds`."""
        with self._blocked:
            self.sleeps.append(seconds)
            due = self._elapsed + max(seconds, 0.0)
            if self._autojump:
                self._elapsed = max(self._elapsed, due)
            self._blocked.wait_for(lambda: self._elapsed >= due)

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forwards, or back where negative; no sleeper notices."""
        with self._lock:
            self._start += seconds

    def advance(self, seconds: float) -> None:
        """Move the time on and wake every sleeper whose time has come, from any thread."""
        with self._blocked:
            self._elapsed += seconds
            due = []
            while self._sleepers and self._sleepers[0][0] <= self._elapsed:
                due.append(heapq.heappop(self._sleepers)[2])
            self._blocked.notify_all()
        for future in due:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_wake, future)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
