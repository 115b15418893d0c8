"""OpenTelemetry spans of a server: a request, the work it began, its wait and the engine's part.

Owns the bridge. Nothing is imported or recorded unless the program has set up OpenTelemetry (as
`opentelemetry-instrument tinkex serve` does) or the setting `tracing` asks for it. The client's
trace goes on here: it comes in the header `traceparent` (https://www.w3.org/TR/trace-context/).
Spans follow https://opentelemetry.io/docs/specs/semconv/http/http-spans/, and carry no key, no
prompt and no body.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tinkex._version import __version__
from tinkex.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NANOSECONDS = 1_000_000_000


class Tracing:
    """Records the spans of one server.

    Args:
        provider: an OpenTelemetry TracerProvider; None takes the program's, if it has one.
    """

    def __init__(self, provider: Any = None) -> None:
        trace: Any = sys.modules.get("opentelemetry.trace")
        if provider is None and trace is not None:
            given = trace.get_tracer_provider()
            provider = None if isinstance(given, trace.ProxyTracerProvider) else given
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("tinkex", __version__)

    @property
    def enabled(self) -> bool:
        """Whether spans are recorded."""
        return self._tracer is not None

    def close(self) -> None:
        """Send what is left. Blocks; for a provider of the server's own."""
        if self._provider is not None:
            self._provider.shutdown()

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """Record a block as the serving of an HTTP request; gives the span, None when off."""
        if self._tracer is None:
            yield None
            return
        from opentelemetry import propagate, trace  # noqa: PLC0415 - the program has the package

        with self._tracer.start_as_current_span(
            method, context=propagate.extract(headers), kind=trace.SpanKind.SERVER
        ) as span:
            yield span

    def work(self, name: str, *, parent: Any, accepted_at: float) -> Any:
        """Begin the span of accepted work, below its request's; None when off.

        Args:
            name: of the operation.
            parent: the request's span, or None.
            accepted_at: unix seconds.
        """
        if self._tracer is None:
            return None
        return self._tracer.start_span(
            name, context=_below(parent), start_time=int(accepted_at * _NANOSECONDS)
        )

    def part(self, name: str, *, parent: Any, began_at: float, ended_at: float) -> None:
        """Record a part of work that has ended, below its span. Times are unix seconds."""
        if self._tracer is None or parent is None:
            return
        span = self._tracer.start_span(
            name, context=_below(parent), start_time=int(began_at * _NANOSECONDS)
        )
        span.end(end_time=int(ended_at * _NANOSECONDS))


def end_request(span: Any, *, method: str, route: str, status: int, request_id: str) -> None:
    """Name a request's span by its route, and note its answer."""
    if span is None:
        return
    span.update_name(f"{method} {route}")
    span.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "tinkex.request_id": request_id,
        }
    )
    if status >= 500:
        _mark_failed(span)


def end_work(span: Any, *, outcome: str, ended_at: float) -> None:
    """End the span of accepted work; `outcome` is ok, or the category of its error."""
    if span is None:
        return
    span.set_attribute("tinkex.outcome", outcome)
    if outcome not in {"ok", "user"}:
        _mark_failed(span)
    span.end(end_time=int(ended_at * _NANOSECONDS))


def exporting_provider() -> Any:
    """Make a provider that sends spans by OTLP over HTTP, to where the variables OTEL_... say.

    Raises:
        MissingPackageError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - as above, optional
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackageError(
            "tracing needs OpenTelemetry: pip install 'tinkex[server,tracing]', or leave the "
            "setting tracing out"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "tinkex"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _below(parent: Any) -> Any:
    from opentelemetry import context, trace  # noqa: PLC0415 - the program has the package

    # not the running task's own context: work may begin in that of another request
    return context.Context() if parent is None else trace.set_span_in_context(parent)


def _mark_failed(span: Any) -> None:
    from opentelemetry import trace  # noqa: PLC0415 - as above

    span.set_status(trace.StatusCode.ERROR)
