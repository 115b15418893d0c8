"""How long the calls of a client take: counts and percentiles over one window of time.

Owns the arithmetic. It is an event handler: what is not attached measures nothing.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from tinkex._clock import Clock, SystemClock
from tinkex.client.events import Event

_KEPT = 10_000
"""Durations of one operation that are kept at most."""


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """One operation within the window; seconds."""

    count: int
    errors: int
    p50: float
    p95: float
    p99: float


class ClientStatistics:
    """Durations by operation: `http POST /api/v1/asample`, `train forward_backward`, `sample`.

        statistics = tinkex.ClientStatistics()
        detach = service_client.on_event(statistics)
        ...
        statistics.snapshot()["sample"].p99

    Args:
        clock: tells the time; the system's by default.
        window: seconds that count.
    """

    def __init__(self, clock: Clock | None = None, window: float = 300.0) -> None:
        self._clock = clock or SystemClock()
        self._window = window
        self._lock = threading.Lock()
        self._calls: dict[str, deque[tuple[float, float, bool]]] = defaultdict(
            lambda: deque(maxlen=_KEPT)
        )

    def __call__(self, event: Event) -> None:
        """Count what ended; an event handler."""
        operation, _, ending = event.name.rpartition(".")
        if ending not in {"stop", "exception"} or "duration" not in event.attributes:
            return
        name = _title(operation, event)
        status = event.attributes.get("status")
        bad = ending == "exception" or (isinstance(status, int) and status >= 400)
        with self._lock:
            self._calls[name].append((self._clock.monotonic(), event.attributes["duration"], bad))

    def snapshot(self) -> dict[str, OperationStatistics]:
        """Return the statistics of every operation that ended within the window, by name."""
        since = self._clock.monotonic() - self._window
        with self._lock:
            for name, calls in list(self._calls.items()):
                while calls and calls[0][0] < since:
                    calls.popleft()
                if not calls:
                    del self._calls[name]
            recent = {name: list(calls) for name, calls in self._calls.items()}
        return {name: _summary(calls) for name, calls in sorted(recent.items())}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of ascending values; `share` in (0, 1]."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _summary(calls: Sequence[tuple[float, float, bool]]) -> OperationStatistics:
    durations = sorted(duration for _, duration, _ in calls)
    return OperationStatistics(
        count=len(calls),
        errors=sum(bad for *_, bad in calls),
        p50=percentile(durations, 0.50),
        p95=percentile(durations, 0.95),
        p99=percentile(durations, 0.99),
    )


def _title(operation: str, event: Event) -> str:
    attributes = event.attributes
    if operation == "http.request":
        return f"http {attributes['method']} {attributes['path']}"
    if "operation" in attributes:
        return f"{operation} {attributes['operation']}"
    return operation
