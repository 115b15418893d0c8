"""What every request passes on its way in and out, as plain ASGI.

Owns request ids, the log line of a request, the API key check, body limits and decompression, and
that every error leaves as JSON. Knows nothing of what a route does.
"""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tinkex.errors import InputError
from tinkex.server.bodies import ClientDisconnected, read_body
from tinkex.server.refusal import Refusal, bad_request, reply_headers, unauthorized
from tinkex.wire.headers import API_KEY, CONTENT_ENCODING, REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tinkex._clock import Clock
    from tinkex.server.auth import KeyRing
    from tinkex.server.config import Limits
    from tinkex.server.logs import Logger

API_PREFIX = "/api/v1/"
# Their addresses carry a signature instead of a key.
SIGNED_PREFIX = "/api/v1/downloads/"
OPEN_PATHS = frozenset({"/api/v1/healthz"})
# Its errors belong into the future that the client waits for, so it is read to its end.
DRAINED_PATHS = frozenset({"/api/v1/forward_backward", "/api/v1/forward"})


class RequestId:
    """Gives each request an id, in `scope["state"]` and in the reply, and logs its end."""

    def __init__(self, app: ASGIApp, *, clock: Clock, logger: Logger) -> None:
        self._app = app
        self._clock = clock
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        start = self._clock.monotonic()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            log = self._logger.info if status >= 400 else self._logger.debug
            log(
                "request",
                request_id=request_id,
                method=scope["method"],
                path=scope["path"],
                status=status,
                owner=scope["state"].get("owner"),
                seconds=round(self._clock.monotonic() - start, 4),
            )


class ErrorReplies:
    """Turns exceptions into JSON replies `{"detail": ...}`; never an empty body."""

    def __init__(self, app: ASGIApp, *, logger: Logger) -> None:
        self._app = app
        self._logger = logger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except ClientDisconnected:
            return
        except Exception as error:
            reply = self._reply(scope, error)
            if started:
                raise
            await reply(scope, receive, send)

    def _reply(self, scope: Scope, error: Exception) -> Response:
        if isinstance(error, Refusal):
            return error_reply(error.status_code, error.message, reply_headers(error))
        if isinstance(error, InputError):
            return error_reply(400, str(error))
        if isinstance(error, HTTPException):
            return error_reply(error.status_code, _explain(scope, error), error.headers)
        request_id = scope["state"].get("request_id")
        self._logger.error("request failed", request_id=request_id, exc_info=error)
        return error_reply(
            500,
            f"The server failed in this request ({type(error).__name__}); its log has the details "
            f"under request id {request_id}.",
        )


def error_reply(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Build the reply to a refused request."""
    body = orjson.dumps({"detail": detail})
    return Response(body, status, headers=headers, media_type="application/json")


def _explain(scope: Scope, error: HTTPException) -> str:
    """Say what Starlette's bare status means here."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return f"This server has no {scope['method']} {scope['path']}."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        return f"{scope['path']} does not answer {scope['method']}; it answers {allowed}."
    return error.detail


class Authentication:
    """Lets only requests with an accepted key through, and says whose they are."""

    def __init__(self, app: ASGIApp, *, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "")
        needs_key = path not in OPEN_PATHS and not path.startswith(SIGNED_PREFIX)
        if scope["type"] == "http" and path.startswith(API_PREFIX) and needs_key:
            scope["state"]["owner"] = self._owner(Headers(scope=scope))
        await self._app(scope, receive, send)

    def _owner(self, headers: Headers) -> str:
        key = headers.get(API_KEY, "")
        if not key:
            raise unauthorized(
                "No API key: send it in the X-API-Key header, or set TINKER_API_KEY for the SDK. "
                "The key is in the server's data folder, in the file api_key."
            )
        owner = self._keys.owner(key)
        if owner is None:
            raise unauthorized(
                "This API key is not accepted here: use one of this server's own keys."
            )
        return owner


class BodyReader:
    """Reads the body whole, within the limits, and hands it on decompressed."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        drain = self._limits.max_drained_bytes if scope["path"] in DRAINED_PATHS else 0
        if not headers.get("content-length", "0").isdigit():
            raise bad_request("Content-Length is not a number.")
        body = await read_body(
            receive,
            encoding=headers.get(CONTENT_ENCODING, "").strip().lower(),
            limit=self._limits.max_body_bytes,
            drain_limit=drain,
        )
        scope["state"]["oversize"] = body.oversize
        given = False

        async def give_body() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body.data, "more_body": False}

        await self._app(scope, give_body, send)
