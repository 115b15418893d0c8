"""Something that everybody needs and one caller makes: a session, a token, the server's settings.

Owns who waits for whom. Those who waited for an attempt that failed fail with it: each would try
it again in turn otherwise, and the last would hear of a server that is gone after as many times
the minute that one attempt takes.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tinkex.errors import TinkerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType


class SharedAttempt:
    """One attempt at a time, and those who wait for it. For tasks of one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._failed = 0
        self._error: TinkerError | None = None
        self._raised_at: TracebackType | None = None

    @property
    def under_way(self) -> bool:
        """Whether it is being made."""
        return self._lock.locked()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold this while you look whether it is there, and make it if it is not.

        Raises:
            TinkerError: as the attempt that this waited for.
        """
        failed_before = self._failed
        self._waiting += 1
        try:
            async with self._lock:
                if self._error is not None and self._failed > failed_before:
                    # from where it was raised first: else each adds its frames to the others'
                    raise self._error.with_traceback(self._raised_at)
                try:
                    yield
                except TinkerError as error:
                    self._failed += 1
                    self._error, self._raised_at = error, error.__traceback__
                    raise
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._error = self._raised_at = None  # the frames would keep the client alive

    async def over(self) -> None:
        """Wait until nobody makes it."""
        async with self._lock:
            pass
