"""A reverse proxy on loopback that notes every request on its way to a real server."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkex.wire import tinkex_public_pb2 as pb

_HOP_HEADERS = {"host", "content-length", "connection", "transfer-encoding", "content-encoding"}


@dataclass(frozen=True)
class Exchange:
    """One request, its body decoded to a map, and the status of its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int


def decoded(headers: dict[str, str], body: bytes) -> Any:
    """Return a request's body as a map, whether it is protobuf or JSON."""
    if "protobuf" in headers.get("content-type", ""):
        message = pb.ForwardBackwardRequest.FromString(body)
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.loads(body) if body else None


@contextmanager
def recording_proxy(upstream: str):
    """Yield (url, exchanges); `exchanges` grows while requests pass."""
    exchanges: list[Exchange] = []
    client = httpx.AsyncClient(base_url=upstream, timeout=90)

    async def forward(request: Request) -> Response:
        body = await request.body()
        headers = {k: v for k, v in request.headers.items() if k not in _HOP_HEADERS}
        headers["accept-encoding"] = "identity"
        answer = await client.request(
            request.method,
            request.url.path,
            params=request.url.query,
            headers=headers,
            content=body,
        )
        exchanges.append(
            Exchange(
                method=request.method,
                path=request.url.path,
                headers=dict(request.headers),
                body=decoded(dict(request.headers), body),
                status=answer.status_code,
            )
        )
        kept = {k: v for k, v in answer.headers.items() if k not in _HOP_HEADERS}
        return Response(answer.content, status_code=answer.status_code, headers=kept)

    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", forward, methods=methods)])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", exchanges
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
