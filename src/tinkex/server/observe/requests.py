"""Every HTTP request, counted, timed and traced on its way through.

Owns that, and that code which a request runs knows which one it is (`context.current_request`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Mount, Route

from tinkex.server.observe.context import RequestContext, current_request
from tinkex.server.observe.metrics import UNKNOWN_ROUTE
from tinkex.server.observe.tracing import end_request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tinkex._clock import Clock
    from tinkex.server.observe.metrics import ServerMetrics
    from tinkex.server.observe.tracing import Tracing


class ObservedRequests:
    """Counts, times and traces requests; goes inside the middleware that gives them ids.

    Args:
        app: what answers them.
        metrics: counts them.
        tracing: records their spans.
        clock: times them.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: ServerMetrics, tracing: Tracing, clock: Clock
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._templates: dict[Any, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = self._clock.monotonic(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method, request_id = scope["method"], scope["state"]["request_id"]
        self._metrics.in_progress.inc()
        with self._tracing.request(method, Headers(scope=scope)) as span:
            token = current_request.set(RequestContext(request_id, span, scope["state"]))
            try:
                await self._app(scope, receive, watch)
            finally:
                current_request.reset(token)
                self._metrics.in_progress.dec()
                route = self._template(scope)
                seconds = self._clock.monotonic() - start
                self._metrics.request_ended(method, route, status, seconds)
                end_request(span, method=method, route=route, status=status, request_id=request_id)

    def _template(self, scope: Scope) -> str:
        """Give the template of the route that answered, never the path: that has ids in it."""
        if self._templates is None:
            self._templates = dict(templates(scope["app"].routes))
        endpoint = scope.get("endpoint")
        if not isinstance(endpoint, Hashable):  # a mount's router, which found no route
            return UNKNOWN_ROUTE
        return self._templates.get(endpoint, UNKNOWN_ROUTE)


def templates(routes: Iterable[BaseRoute], prefix: str = "") -> Iterator[tuple[Any, str]]:
    """List (endpoint, template) of routes and of those that are mounted."""
    for route in routes:
        if isinstance(route, Mount):
            yield from templates(route.routes, prefix + route.path)
        elif isinstance(route, Route):
            yield route.endpoint, prefix + route.path
