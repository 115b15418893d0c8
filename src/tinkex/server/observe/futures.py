"""Accepted work, from its acceptance to its end: counted, traced, and its failures logged.

Owns that what a user is told of a failure of ours stands in the log too, under the id of the
request that began it. Neither prompts nor results get here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkex.server.observe.context import current_request
from tinkex.server.observe.tracing import end_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex._clock import Clock
    from tinkex._logs import Logger
    from tinkex.server.futures import Future
    from tinkex.server.observe.metrics import ServerMetrics
    from tinkex.server.observe.tracing import Tracing

_OK = "ok"
_USER = "user"


@dataclass(frozen=True, slots=True)
class _Accepted:
    """Work that has begun."""

    monotonic: float
    at: float
    """Unix seconds."""
    request_id: str | None
    """Of the HTTP request; None for work that a restarted server took up again."""
    span: Any


class FutureWatch:
    """Sees every future begin and end.

    Args:
        metrics: counts them.
        tracing: records their spans.
        clock: times them.
        logger: takes a line for each that failed by our fault.
        stopping: tells whether the server is: what that ends is no failure to look into.
    """

    def __init__(
        self,
        *,
        metrics: ServerMetrics,
        tracing: Tracing,
        clock: Clock,
        logger: Logger,
        stopping: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._logger = logger
        self._stopping = stopping
        self._open: dict[str, _Accepted] = {}

    def opened(self, future: Future) -> None:
        """Note that work was accepted."""
        now, request = self._clock.now(), current_request.get()
        span = self._tracing.work(
            future.operation.value,
            parent=None if request is None else request.span,
            accepted_at=now,
        )
        self._open[future.request_id] = _Accepted(
            self._clock.monotonic(), now, None if request is None else request.request_id, span
        )

    def discarded(self, future: Future) -> None:
        """Forget work that was not accepted after all."""
        self._open.pop(future.request_id, None)

    def finished(self, future: Future) -> None:
        """Note that it ended."""
        accepted = self._open.pop(future.request_id, None)
        if accepted is None:
            return
        outcome = _OK if future.error is None else future.error.category
        seconds = self._clock.monotonic() - accepted.monotonic
        self._metrics.future_ended(future.operation.value, outcome, seconds)
        if accepted.span is not None:
            self._end_span(accepted, future, outcome, accepted.at + seconds)
        if outcome not in {_OK, _USER} and not self._stopping():
            self._logger.error(
                "work failed",
                request_id=accepted.request_id,
                future=future.request_id,
                operation=future.operation.value,
                owner=future.owner,
                seconds=round(seconds, 4),
                error=str(future.error),
            )

    def _end_span(self, accepted: _Accepted, future: Future, outcome: str, ended_at: float) -> None:
        """End the span of work, with its wait for an engine and the engine's part below it."""
        work = future.work
        if work is not None and work.began is not None:
            began_at = accepted.at + work.began - accepted.monotonic
            self._tracing.part(
                "queue", parent=accepted.span, began_at=accepted.at, ended_at=began_at
            )
            self._tracing.part("engine", parent=accepted.span, began_at=began_at, ended_at=ended_at)
            accepted.span.set_attribute("tinkex.engine_seconds", work.engine_s)
        end_work(accepted.span, outcome=outcome, ended_at=ended_at)
