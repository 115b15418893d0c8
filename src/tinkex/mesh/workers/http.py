"""An HTTP server inside a worker: on loopback, without signals, gone when the worker stops.

Owns the listening socket, uvicorn's life in a task, and what the applications that are served have
in common: who is let through, where a credential stands, how a body is read and an error told. Each
authenticates for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Self

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tinkex._clock import Clock
from tinkex.errors import APIStatusError, ConfigurationError, TinkerError, status_error
from tinkex.mesh.deadline import within
from tinkex.mesh.tasks import let_others_run
from tinkex.openai_api.endpoint import error_reply
from tinkex.openai_api.refusal import error_body

KEEP_ALIVE_S = 75
MAX_CONNECTIONS = 1024
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_CREDENTIAL = 4096
"""Characters of a key or token."""
_LOG = logging.getLogger("tinkex.mesh.http")
_ACCEPTED_TURNS = 4
"""Of the event loop, until each connection that it accepted is in uvicorn's list."""
_LOOK_S, _LOOK_MAX_S = 0.005, 0.1
"""Between two looks whether what was answered has left; each wait is twice the one before."""


class HttpServer:
    """Serves an application while it is entered.

    Args:
        app: an ASGI application.
        host: an address of this machine.
        port: 0 for a free one.
        clock: measures how long requests in progress may go on at the end.
        grace_s: how long that is, in seconds, where `stop` is not called before.
    """

    def __init__(
        self, app: ASGIApp, *, host: str, port: int, clock: Clock, grace_s: float = 1.0
    ) -> None:
        self._app = app
        self._host, self._port = host, port
        self._clock = clock
        self._grace_s = grace_s
        self.url = ""
        """Base URL, once it is entered."""

    async def __aenter__(self) -> Self:
        """Bind and begin to serve.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        self._listener = self._bound()
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._server = _Server(
            uvicorn.Config(
                self._app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                limit_concurrency=MAX_CONNECTIONS,
            ),
            self._clock,
        )
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[self._listener]), name=f"http {self.url}"
        )
        await self._server.up.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(self._grace_s)

    async def stop(self, grace_s: float) -> None:
        """Take no connection any more, and end once requests in progress have; harmless twice.

        Args:
            grace_s: after so many seconds they are cut off.
        """
        if not self._server.stop.is_set():
            self._server.grace_s = grace_s
            self._server.stop.set()
        try:
            await self._serving
        finally:
            self._listener.close()

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # with the protocol named, asyncio turns Nagle's algorithm off on each connection
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise ConfigurationError(
                f"cannot listen on {self._host} port {self._port} ({error.strerror}): choose "
                "another, or port 0 for a free one"
            ) from error
        listener.setblocking(False)
        return listener


class _Server(uvicorn.Server):
    """uvicorn, but it says when it is up, wakes for nothing, and leaves signals alone.

    Nor does it wait for nothing at its end: uvicorn sleeps a tenth of a second there, at least.
    """

    def __init__(self, config: uvicorn.Config, clock: Clock) -> None:
        super().__init__(config)
        self._clock = clock
        self.stop = asyncio.Event()
        self.up = asyncio.Event()
        self.grace_s = 0.0
        """How long requests in progress may go on once `stop` is set, in seconds."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        finally:
            self.up.set()

    async def main_loop(self) -> None:
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and wait for what is in progress, for as long as `grace_s`."""
        loop = asyncio.get_running_loop()
        for listening in (one for server in self.servers for one in server.sockets):
            # Not closed yet: asyncio accepts a connection in one turn and hands it over in the
            # next, and one that comes to a closed server is in nobody's list, and stays open.
            loop.remove_reader(listening.fileno())
        for _ in range(_ACCEPTED_TURNS):
            await let_others_run()
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        try:
            await within(self._clock, self.grace_s, self._finish())
        except TimeoutError:
            running = list(self.server_state.tasks)
            _LOG.warning("%d requests were cut off after %g s", len(running), self.grace_s)
            for task in running:
                task.cancel()

    async def _finish(self) -> None:
        """Close connections that wait for a request, the others once theirs is answered."""
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        look_s = _LOOK_S
        while True:
            for _ in range(_ACCEPTED_TURNS):
                await let_others_run()
            if state.tasks:
                await asyncio.wait(list(state.tasks))
            elif state.connections:  # somebody reads slowly
                await self._clock.sleep(look_s)
                look_s = min(2 * look_s, _LOOK_MAX_S)
            else:
                return

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class LocalOnly:
    """Lets through what a program on this machine sent to a name of this machine, whole.

    A web page in the user's browser can send requests to loopback: under its own name (`Origin`),
    or, after rebinding its name to 127.0.0.1, under that (`Host`).

    Args:
        app: what is protected.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        if scope["type"] == "http" and not self._is_local(scope):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            body = b"This address is for programs on its own machine: Host or Origin is another's."
            await send({"type": "http.response.body", "body": body})
            return
        with contextlib.suppress(ClientDisconnect):  # it hung up while it sent: no fault of ours
            await self._app(scope, receive, send)

    def _is_local(self, scope: Scope) -> bool:
        headers = [(name, value) for name, value in scope["headers"] if name in _CHECKED]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or len(origins) > 1:
            return False
        named = [hosts[0], *(origin.partition("://")[2] for origin in origins)]
        return all(_name_of(host) in LOOPBACK_NAMES for host in named)


_CHECKED = frozenset({b"host", b"origin"})


def _name_of(host: str) -> str:
    """Return a host's name without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def credential_of(scope: Scope) -> str:
    """Return the key or token that a request carries, as `x-api-key` or bearer; empty: none."""
    headers = dict(scope["headers"])
    plain = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    scheme, _, rest = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    found = plain or (rest.strip() if scheme.lower() == "bearer" else "")
    return found if len(found) <= MAX_CREDENTIAL else ""


async def read_body(request: Request, most: int) -> bytes:
    """Read a body of at most so many bytes.

    Raises:
        APIStatusError: 413, it is longer.
    """
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise too_long(most)
    return bytes(found)


def too_long(most: int) -> APIStatusError:
    """Refuse a body of more than `most` bytes."""
    return status_error(413, f"The body is longer than {most} bytes.")


async def tell_error(_: Request, error: Exception) -> Response:
    """Answer with an error, in OpenAI's form: an application's handler of `TinkerError`."""
    assert isinstance(error, TinkerError)
    return error_reply(error, error_body(error))
