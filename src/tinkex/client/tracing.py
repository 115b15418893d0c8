"""OpenTelemetry, when the program uses it: spans for what the client does, and its trace passed on.

Owns the bridge and imports nothing: a program that uses OpenTelemetry has imported it, and one that
does not pays nothing. Spans follow the semantic conventions for HTTP clients
(https://opentelemetry.io/docs/specs/semconv/http/http-spans/); the trace travels in the headers
that the program's propagator writes, `traceparent` by default (https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tinkex._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_API = "opentelemetry.trace"
_CONVENTIONS = {
    "method": "http.request.method",
    "path": "url.path",
    "status": "http.response.status_code",
}


def enabled() -> bool:
    """Whether the program records spans: a provider that only promises one does not."""
    trace: Any = sys.modules.get(_API)
    return trace is not None and not isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider
    )


def headers() -> dict[str, str]:
    """Return the headers that carry the present trace to the server; none without OpenTelemetry."""
    carrier: dict[str, str] = {}
    if _API in sys.modules:
        from opentelemetry import propagate  # noqa: PLC0415 - the program has the package

        propagate.inject(carrier)
    return carrier


@contextmanager
def span(name: str, attributes: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[None]:
    """Record a block as a span: what it raises is noted, and `found` when it ends.

    Args:
        name: name of the operation; an HTTP request is named by its method and path.
        attributes: known at its start.
        found: filled by the block.
    """
    if not enabled():
        yield
        return
    trace: Any = sys.modules[_API]
    title = f"{attributes['method']} {attributes['path']}" if "method" in attributes else name
    tracer = trace.get_tracer("tinkex", __version__)
    with tracer.start_as_current_span(
        title, kind=trace.SpanKind.CLIENT, attributes=_named(attributes)
    ) as current:
        try:
            yield
        finally:
            current.set_attributes(_named(found))


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Give attributes the names of the conventions, or our own prefix; None is left out."""
    return {
        _CONVENTIONS.get(name, f"tinkex.{name}"): value
        for name, value in attributes.items()
        if value is not None
    }
