"""Time as an argument. The only module that asks the operating system for it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What needs the time takes one of these."""

    def now(self) -> float:
        """Return the wall-clock time in seconds since the epoch; it may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for `seconds`."""
        ...

    def sleep_sync(self, seconds: float) -> None:
        """Block this thread for `seconds`."""
        ...


class SystemClock:
    """The machine's own clock. Asked many times in each request, so without a frame of its own."""

    now = staticmethod(time.time)  # noqa: TID251 - this is the one place
    """Return the wall-clock time in seconds since the epoch."""
    monotonic = staticmethod(time.monotonic)  # noqa: TID251 - this is the one place
    """Return the system's monotonic time in seconds."""

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for `seconds`."""
        await asyncio.sleep(seconds)  # noqa: TID251 - this is the one place

    def sleep_sync(self, seconds: float) -> None:
        """Block this thread for `seconds`."""
        time.sleep(seconds)  # noqa: TID251 - this is the one place
