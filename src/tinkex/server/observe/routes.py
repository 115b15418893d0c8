"""What operators ask a server: is it alive, is it ready, what has it done.

`/healthz` and `/readyz` need no key and tell nothing of users. `/metrics` is for programs on this
machine and for administrators: a request from elsewhere, or one that a proxy passed on, needs an
admin key in `X-API-Key`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from tinkex.server.config import is_loopback
from tinkex.server.observe.health import Phase
from tinkex.server.observe.metrics import CONTENT_TYPE
from tinkex.server.openapi.describe import Media, described
from tinkex.server.refusal import forbidden
from tinkex.server.routes.messages import json_reply

if TYPE_CHECKING:
    from starlette.requests import Request

    from tinkex.server.services import Services

STATUS = dict[str, str]
PROXY_HEADERS = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
RETRY_AFTER_S = "2"


class OperatorRoutes:
    """Routes below the root, beside the API."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    @described(response=STATUS, faults={503: "A base model's engine broke down."})
    async def health(self, _request: Request) -> Response:
        """Say whether the process is worth keeping: with a 503 only where the engine is broken."""
        failure = self._s.health.failure
        if failure is not None:
            return json_reply({"status": Phase.FAILED.value, "detail": failure}, 503)
        return json_reply({"status": "ok"})

    @described(response=STATUS, faults={503: "Not now: the body says why."})
    async def ready(self, _request: Request) -> Response:
        """Say whether requests should be sent here, or with a 503 why not."""
        phase, why = self._s.health.state()
        if phase is Phase.READY:
            return json_reply({"status": phase.value})
        return not_ready(phase, why)

    @described(response=(Media("text/plain"),), faults={403: "Not local, and no admin key."})
    async def metrics(self, request: Request) -> Response:
        """Show the counters, to whoever may see them.

        Raises:
            Refusal: 403 for a request from elsewhere without an admin key.
        """
        caller = request.scope["state"].get("caller")
        if not is_local(request) and not (caller is not None and caller.is_admin):
            raise forbidden(
                "/metrics is shown to programs on the server's own machine and to administrators: "
                "send an admin key in X-API-Key."
            )
        # a process's figures are files in /proc, and a database lies on a disk
        text = await asyncio.to_thread(self._s.metrics.render)
        return Response(text, media_type=CONTENT_TYPE)


def is_local(request: Request) -> bool:
    """Whether a request came from this machine, and not, by what it says, through a proxy on it.

    Not every proxy adds a header of its own, but then most leave the name that was asked for.
    """
    client = request.client
    forwarded = any(name in request.headers for name in PROXY_HEADERS)
    asked_here = is_loopback(request.url.hostname or "")
    return client is not None and is_loopback(client.host) and asked_here and not forwarded


def not_ready(phase: Phase, why: str) -> Response:
    """Reply that requests should go elsewhere, or come later."""
    reply = json_reply({"status": phase.value, "detail": why}, 503)
    reply.headers["Retry-After"] = RETRY_AFTER_S
    return reply
