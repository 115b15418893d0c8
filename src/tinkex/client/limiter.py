"""The back-off that every client of one key shares.

Owns one deadline per (normalised base URL, API key): after a 429 nothing goes out before it. The
registry is an object, so tests and multi-tenant programs have their own. Safe from any thread
and from any event loop; holds no permit while it waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinkex._clock import Clock

_RECENT_SECONDS = 10.0


class RateLimiter:
    """One deadline, in the seconds of `clock.monotonic()`.

    A later deadline replaces an earlier one, never the other way round. A success clears the
    deadline only if its request was sent after the deadline was set: an answer to an older
    request says nothing about the limit.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._set_at = 0.0
        self._throttled_at: float | None = None
        self._waiters: set[_Waiter] = set()

    def back_off(self, seconds: float) -> None:
        """Let nothing out for `seconds` from now."""
        with self._lock:
            now = self._clock.monotonic()
            self._throttled_at = now
            if self._deadline is None or now + seconds > self._deadline:
                self._deadline = now + seconds
                self._set_at = now

    def succeeded(self, sent_at: float) -> None:
        """Note that a request sent at `sent_at` was accepted."""
        with self._lock:
            if self._deadline is None or sent_at <= self._set_at:
                return
            self._deadline = None
            waiters = list(self._waiters)
        for waiter in waiters:
            waiter.wake()

    def remaining(self) -> float:
        """Seconds until requests may go out; 0.0 when they may now."""
        with self._lock:
            if self._deadline is None:
                return 0.0
            return max(0.0, self._deadline - self._clock.monotonic())

    def throttled_recently(self) -> bool:
        """Whether a 429 was seen in the last ten seconds."""
        with self._lock:
            seen = self._throttled_at
            return seen is not None and self._clock.monotonic() - seen < _RECENT_SECONDS

    async def wait(self) -> None:
        """Return when requests may go out; wakes early when the deadline is cleared."""
        while (remaining := self.remaining()) > 0:
            await self._sleep_or_wake(remaining)

    async def _sleep_or_wake(self, seconds: float) -> None:
        waiter = _Waiter(asyncio.get_running_loop())
        with self._lock:
            self._waiters.add(waiter)
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({sleeper, waiter.woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            waiter.woken.cancel()
            with self._lock:
                self._waiters.discard(waiter)


class _Waiter:
    """One waiting task, which may belong to another thread's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.woken: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class LimiterRegistry:
    """The limiters of one process, tenant or test: one per (base URL, API key).

    A limiter lives as long as somebody holds it, so clients that come and go leave nothing here.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._limiters: weakref.WeakValueDictionary[tuple[str, str], RateLimiter] = (
            weakref.WeakValueDictionary()
        )

    def get(self, base_url: str, api_key: str) -> RateLimiter:
        """Return the limiter of this key at this (normalised) URL, the same one to everybody."""
        name = (base_url, hashlib.sha256(api_key.encode()).hexdigest())
        with self._lock:
            limiter = self._limiters.get(name)
            if limiter is None:
                limiter = self._limiters[name] = RateLimiter(self._clock)
        return limiter
