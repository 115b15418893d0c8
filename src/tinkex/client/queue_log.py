"""Say in the log why a client's requests wait, without saying it all the time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tinkex.types import QueueState

if TYPE_CHECKING:
    from tinkex._clock import Clock

_LOG = logging.getLogger("tinkex.client")
_INTERVAL = 60.0

_REASONS = {
    QueueState.PAUSED_CAPACITY: "the server has no capacity free",
    QueueState.PAUSED_RATE_LIMIT: "the rate limit of this key is reached",
    QueueState.UNKNOWN: "the server paused it",
}


class RareLog:
    """Warns, but once a minute at most: a thousand requests may wait for one reason.

    Args:
        clock: tells the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged_at: float | None = None

    def warning(self, text: str, *arguments: object) -> None:
        """Log a line, unless there was one within the last minute."""
        now = self._clock.monotonic()
        if self._logged_at is None or now - self._logged_at >= _INTERVAL:
            self._logged_at = now
            _LOG.warning(text, *arguments)


class QueueStateLog:
    """An observer that logs a pause when it begins, and once a minute at most.

    Args:
        what: names the work in the log.
        clock: tells the time.
    """

    def __init__(self, what: str, clock: Clock) -> None:
        self._what = what
        self._log = RareLog(clock)

    def on_queue_state_change(
        self, queue_state: QueueState, queue_state_reason: str | None
    ) -> None:
        """Log that the work waits, and why."""
        if queue_state is not QueueState.ACTIVE:
            reason = queue_state_reason or _REASONS[queue_state]
            self._log.warning("%s waits: %s", self._what, reason)
