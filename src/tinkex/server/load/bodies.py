"""Bodies that trickle, and too many large ones at once.

Owns the pace that a body must keep, and how many bytes of bodies are read at a time, over all
clients. Size and encoding of one body are `server/http/bodies.py`'s.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkex.server.refusal import too_slow, try_later

if TYPE_CHECKING:
    from starlette.types import Message, Receive

    from tinkex._clock import Clock
    from tinkex._timers import Timers
    from tinkex.server.config import ServerConfig
    from tinkex.server.observe.metrics import ServerMetrics

LEAST_BYTES_PER_S = 16 * 2**10
"""Below a slow mobile line; a body of 5 MB may take five minutes."""
SMALL_BYTES = 64 * 2**10
"""A body up to this is read whatever else is: polls and heartbeats must get through."""
BUSY_RETRY_S = 1.0


class BodyIntake:
    """The bodies that are being read.

    Args:
        config: the settings.
        clock: tells time.
        timers: watches.
        metrics: counts refusals.
    """

    def __init__(
        self, config: ServerConfig, *, clock: Clock, timers: Timers, metrics: ServerMetrics
    ) -> None:
        self._grace_s = config.body_timeout_s
        self._max_bytes = config.limits.max_reading_bytes
        self._clock = clock
        self._timers = timers
        self._metrics = metrics
        self.reading_bytes = 0
        """Bytes of bodies that are not read to their end."""

    def begin(self, receive: Receive) -> PacedBody:
        """Begin to read a body; `end` it."""
        return PacedBody(self, receive, self._clock.monotonic())

    def left_s(self, began: float, seen: int) -> float:
        """Give the seconds that a body may still take until its next piece."""
        allowed = self._grace_s + seen / LEAST_BYTES_PER_S
        return began + allowed - self._clock.monotonic()

    async def within(self, seconds: float, receive: Receive) -> Message:
        """Wait for a piece, but no longer than so many seconds.

        Raises:
            Refusal: 408.
        """
        task, is_late = asyncio.current_task(), False
        assert task is not None

        def stop() -> None:
            nonlocal is_late
            is_late = True
            task.cancel()

        timer = self._timers.call_later(max(0.0, seconds), stop)
        try:
            return await receive()
        except asyncio.CancelledError:
            if not is_late:
                raise
            task.uncancel()
            self._metrics.refused("slow_body")
            raise too_slow(
                f"The request body comes too slowly: it must not stop for {self._grace_s:g} s, and "
                f"be no slower than {LEAST_BYTES_PER_S} bytes a second."
            ) from None
        finally:
            timer.cancel()

    def count(self, body_bytes: int, more: int) -> None:
        """Count `more` bytes of a body of which `body_bytes` have come.

        Raises:
            Refusal: 429 when too much is being read.
        """
        if body_bytes > SMALL_BYTES and self.reading_bytes + more > self._max_bytes:
            self._metrics.refused("reading_bytes")
            raise try_later(
                f"{self.reading_bytes} bytes of requests are being read. Wait and send again.",
                retry_after_s=BUSY_RETRY_S,
            )
        self.reading_bytes += more


class PacedBody:
    """One body, piece by piece."""

    __slots__ = ("_began", "_intake", "_receive", "_seen")

    def __init__(self, intake: BodyIntake, receive: Receive, began: float) -> None:
        self._intake = intake
        self._receive = receive
        self._began = began
        self._seen = 0

    async def __call__(self) -> Message:
        """Give the next piece.

        Raises:
            Refusal: 408 for one that does not come in time, 429 when too much is being read.
        """
        left = self._intake.left_s(self._began, self._seen)
        message = await self._intake.within(left, self._receive)
        more = len(message.get("body", b""))
        self._seen += more
        try:
            self._intake.count(self._seen, more)
        except BaseException:
            self._seen -= more
            raise
        return message

    def end(self) -> None:
        """Count it out."""
        self._intake.reading_bytes -= self._seen
        self._seen = 0
