"""A reverse proxy on loopback that spoils some of the requests on their way to a real server."""

from __future__ import annotations

import socket
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_HOP_HEADERS = {"host", "content-length", "connection", "transfer-encoding", "content-encoding"}


@dataclass(frozen=True)
class Fault:
    """What becomes of a request: this answer, instead of the server's or after it was lost."""

    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    lose_answer: bool = False
    """The server gets the request and does its work; only its answer is lost."""


@contextmanager
def faulty_proxy(upstream, choose):
    """Yield the proxy's URL; `choose(path)` gives each request's fault, or None."""
    clients = {}

    @asynccontextmanager
    async def lifespan(_):
        async with httpx.AsyncClient(base_url=upstream, timeout=60) as client:
            clients["upstream"] = client
            yield

    async def forward(request):
        body = await request.body()
        fault = choose(request.url.path)
        answer = None
        if fault is None or fault.lose_answer:
            headers = {k: v for k, v in request.headers.items() if k not in _HOP_HEADERS}
            answer = await clients["upstream"].request(
                request.method,
                request.url.path,
                params=request.url.query,
                headers={**headers, "accept-encoding": "identity"},
                content=body,
            )
        if fault is not None:
            return JSONResponse({"detail": "spoiled"}, fault.status, fault.headers)
        kept = {k: v for k, v in answer.headers.items() if k not in _HOP_HEADERS}
        return Response(answer.content, status_code=answer.status_code, headers=kept)

    methods = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", forward, methods=methods)], lifespan=lifespan)
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
