"""Counters of one worker, in Prometheus' form.

Owns their names and labels: methods, roles and kinds of errors, never peers, users or models that a
caller chooses. A worker has a registry of its own, so that several in one process share nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.observer import CallReport
from tinkex.mesh.workers.reading import Reading

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Renewals(Protocol):
    """How often the certificate was not renewed."""

    @property
    def failed(self) -> int:
        """So often."""


class WorkerMetrics:
    """The registry of one worker, and what is counted of its calls; an `rpc.observer.Observer`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        self.answered = 0
        """Calls of others that this worker has answered."""
        self._calls = _Calls()
        self.registry.register(self._calls)
        self._links = Gauge(
            "tinkex_mesh_links", "Open connections to other peers.", registry=self.registry
        )
        self._lost = Counter(
            "tinkex_mesh_links_ended",
            "Connections that ended, by how: orderly or lost.",
            ("how",),
            registry=self.registry,
        )

    def certificate(self, expires_at: Callable[[], float], renewal: Renewals) -> None:
        """Show until when the worker is certified, and how its renewals went."""
        gauge = Gauge(
            "tinkex_mesh_certificate_expires_timestamp_seconds",
            "When the worker's role certificate ends, in Unix seconds; it is renewed before.",
            registry=self.registry,
        )
        gauge.set_function(expires_at)
        failed = Gauge(
            "tinkex_mesh_certificate_renewals_failed",
            "Times that the certificate was due and no auth worker gave another, since the start.",
            registry=self.registry,
        )
        failed.set_function(lambda: renewal.failed)

    def read(self, readings: Callable[[], Iterable[Reading]]) -> None:
        """Show numbers that are asked for whenever the metrics are."""
        self.registry.register(_Readings(readings))

    def first_tokens(self) -> Callable[[float], None]:
        """Begin to show how long first tokens took; what is returned is told each, in seconds."""
        histogram = Histogram(
            "tinkex_mesh_first_token_seconds",
            "From a completion's request at the gateway to its first piece.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        return histogram.observe

    def call_ended(self, report: CallReport) -> None:
        """Count a call."""
        self.answered += report.incoming
        self._calls.add(report)

    def link_opened(self, peer: PeerId) -> None:  # noqa: ARG002 - a label for each peer has no end
        """Count a link."""
        self._links.inc()

    def link_ended(self, peer: PeerId, reason: str, lost: bool) -> None:  # noqa: ARG002 - as above
        """Count a link's end."""
        self._links.dec()
        self._lost.labels("lost" if lost else "orderly").inc()


class _Sums:
    """Of the calls of one method, in one direction."""

    __slots__ = ("in_buckets", "reply_bytes", "request_bytes", "seconds")

    def __init__(self) -> None:
        self.in_buckets = [0] * (len(_SECONDS) + 1)
        self.seconds = 0.0
        self.request_bytes = self.reply_bytes = 0


class _Calls(Collector):
    """Counts calls.

    Plain numbers, made into metrics when somebody looks: a call ends while somebody waits for what
    came of it, and the library's own metrics take a lock each.
    """

    def __init__(self) -> None:
        self._outcomes: Counts[tuple[str, bool, str | None]] = Counts()
        self._sums: dict[tuple[str, bool], _Sums] = {}

    def add(self, report: CallReport) -> None:
        """Count a call."""
        self._outcomes[report.method, report.incoming, report.error] += 1
        sums = self._sums.get((report.method, report.incoming))
        if sums is None:
            sums = self._sums[report.method, report.incoming] = _Sums()
        sums.in_buckets[bisect_left(_SECONDS, report.seconds)] += 1
        sums.seconds += report.seconds
        sums.request_bytes += report.request_bytes
        sums.reply_bytes += report.reply_bytes

    def describe(self) -> list[Metric]:
        """Nothing is asked for before somebody wants to see it."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Show what was counted."""
        calls = CounterMetricFamily(
            "tinkex_mesh_calls",
            "Remote calls that ended, by method, direction and outcome (ok or the error's class).",
            labels=("method", "direction", "outcome"),
        )
        for (method, incoming, error), count in list(self._outcomes.items()):
            calls.add_metric((method, _direction(incoming), error or "ok"), count)
        yield calls
        seconds = HistogramMetricFamily(
            "tinkex_mesh_call_duration_seconds",
            "From a remote call's request to the end of its reply.",
            labels=("method", "direction"),
        )
        sizes = CounterMetricFamily(
            "tinkex_mesh_call_bytes",
            "Bytes of requests and replies.",
            labels=("method", "direction", "part"),
        )
        bounds = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]
        for (method, incoming), sums in list(self._sums.items()):
            labels = method, _direction(incoming)
            buckets = list(zip(bounds, accumulate(sums.in_buckets), strict=True))
            seconds.add_metric(labels, buckets, sums.seconds)
            sizes.add_metric((*labels, "request"), sums.request_bytes)
            sizes.add_metric((*labels, "reply"), sums.reply_bytes)
        yield seconds
        yield sizes


def _direction(incoming: bool) -> str:
    return "incoming" if incoming else "outgoing"


class _Readings(Collector):
    """Asks a worker for its numbers."""

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        self._readings = readings

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing is asked for before somebody wants to see it."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Ask for them."""
        for one in self._readings():
            kind = CounterMetricFamily if one.grows else GaugeMetricFamily
            labels = [one.label] if one.label else []
            family = kind(f"tinkex_mesh_{one.name}", one.help, labels=labels)
            values = one.value if isinstance(one.value, Mapping) else {"": one.value}
            for label, value in values.items():
                family.add_metric([label] if labels else [], value)
            yield family
