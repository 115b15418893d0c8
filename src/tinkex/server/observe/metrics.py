"""Counters and histograms of one server, in Prometheus' form.

Owns their names, labels and buckets. A server has a registry of its own, so two in one process
share nothing. Labels are route templates, statuses, operations, base models and places, never ids,
users or whatever a client chooses: how many series there are is known from the settings.

What others count already (open futures, adapters, tokens) is read when somebody asks:
`observe/gauges.py`.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
UNKNOWN_ROUTE = "unknown"
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FUTURE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


class ServerMetrics:
    """The registry of one server and what is counted as it happens."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = Counter(
            "tinkex_http_requests",
            "Requests answered, by method, route template and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "tinkex_http_request_duration_seconds",
            "From a request's headers to the end of its reply. Polls wait up to long_poll_s.",
            ("route",),
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "tinkex_http_requests_in_progress",
            "Requests that have no whole reply yet.",
            registry=self.registry,
        )
        self._futures = Counter(
            "tinkex_futures_finished",
            "Accepted work that ended, by operation and outcome (ok, or the error's category).",
            ("operation", "outcome"),
            registry=self.registry,
        )
        self._future_seconds = Histogram(
            "tinkex_future_duration_seconds",
            "From the acceptance of work to its end.",
            ("operation",),
            buckets=FUTURE_BUCKETS,
            registry=self.registry,
        )
        self._refusals = Counter(
            "tinkex_refusals",
            "Requests refused for a limit, by its name.",
            ("limit",),
            registry=self.registry,
        )
        self.faults = Counter(
            "tinkex_faults",
            "Exceptions that are bugs or a broken machine; the log has each.",
            registry=self.registry,
        )

    def request_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request; status 0 is one whose client went away before."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def future_ended(self, operation: str, outcome: str, seconds: float) -> None:
        """Count accepted work that ended."""
        self._futures.labels(operation, outcome).inc()
        self._future_seconds.labels(operation).observe(seconds)

    def refused(self, limit: str) -> None:
        """Count a refusal."""
        self._refusals.labels(limit).inc()

    def render(self) -> bytes:
        """Write everything in Prometheus' text form."""
        return generate_latest(self.registry)
