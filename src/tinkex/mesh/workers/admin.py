"""A worker's page for operators: is it alive, is it ready, what has it done, whom does it see.

Served on loopback to programs of the same machine; it tells nothing of users, and changes nothing.
What does is mounted below `/operator`, and asks for a token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tinkex.errors import DamagedDataError
from tinkex.mesh.api.health import Status
from tinkex.mesh.feeds.chain import Head
from tinkex.mesh.workers.http import LocalOnly
from tinkex.mesh.workers.survey import PeerReport


async def _nothing_to_count() -> None:
    pass


def admin_app(
    *,
    status: Callable[[], Status],
    survey: Callable[[], Awaitable[Sequence[PeerReport]]],
    registry: CollectorRegistry,
    count: Callable[[], Awaitable[None]] = _nothing_to_count,
    logs: Callable[[], Awaitable[Sequence[Head]]] | None = None,
    operator: Callable[[], ASGIApp | None] = lambda: None,
) -> ASGIApp:
    """Make the application: /healthz, /readyz, /metrics, /status, /network, and /logs if any.

    Args:
        status: how the worker is.
        survey: whom it sees.
        registry: its metrics.
        count: called before they are shown, for what takes a while to count.
        logs: the ends of the logs that it holds, checked.
        operator: what is served below /operator by now; None: nothing.
    """

    async def health(_: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(_: Request) -> Response:
        now = status()
        word = "ready" if now.ready else "not ready"
        return _json({"status": word, "detail": now.detail}, 200 if now.ready else 503)

    async def metrics(_: Request) -> Response:
        await count()
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def own(_: Request) -> Response:
        return _json(status())

    async def network(_: Request) -> Response:
        return _json([_shown(report) for report in await survey()])

    async def held(_: Request) -> Response:
        assert logs is not None
        try:
            return _json([_head(head) for head in await logs()])
        except DamagedDataError as error:
            return _json({"error": {"message": str(error)}}, 500)

    routes = {
        "/healthz": health,
        "/readyz": ready,
        "/metrics": metrics,
        "/status": own,
        "/network": network,
        **({} if logs is None else {"/logs": held}),
    }

    async def for_operator(scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = operator() or Response(status_code=404)
        await app(scope, receive, send)

    shown = [Route(path, answer) for path, answer in routes.items()]
    return LocalOnly(Starlette(routes=[*shown, Mount("/operator", app=for_operator)]))


def _shown(report: PeerReport) -> dict[str, object]:
    return {
        "role": report.role.value,
        "peer_id": str(report.contact.peer_id),
        "addresses": report.contact.addresses,
        "certified_until": report.certified_until,
        "rtt_ms": None if report.rtt_s is None else report.rtt_s * 1000,
        "error": report.error or None,
        "status": report.status,
    }


def _head(head: Head) -> dict[str, object]:
    return {
        "feed": head.chain.feed,
        "author": str(head.chain.author),
        "epoch": head.chain.epoch.hex(),
        "entries": head.sequence + 1,
        "last_at": head.time / 1e6,
        "hash": head.hash.hex(),
    }


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
