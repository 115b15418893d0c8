"""A client worker's HTTP: OpenAI's and Anthropic's APIs, and accounts, for programs on its machine.

Owns who is let through and how large a body may be. Every request needs a key of its own: the
worker has none, so that whoever reaches it from another user's session has nothing either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinkex._clock import Clock
from tinkex.errors import AuthenticationError, TinkerError, status_error
from tinkex.mesh.api.auth import UsageQuery, UsageReport
from tinkex.mesh.api.gateway import GatewayApi, ListModels
from tinkex.mesh.workers.account_routes import Ask, account_routes
from tinkex.mesh.workers.calling.receipt_book import ReceiptBook
from tinkex.mesh.workers.http import LocalOnly, credential_of, too_long
from tinkex.mesh.workers.shelf import MAX_UPLOAD_BYTES, Shelf
from tinkex.openai_api import (
    AnthropicRoutes,
    Completer,
    OpenAIRoutes,
    astray,
    base_url_hint,
    shared_operations,
)
from tinkex.openai_api.anthropic_messages import anthropic_error_body
from tinkex.openai_api.endpoint import error_reply
from tinkex.openai_api.refusal import error_body

API_PREFIX = "/v1"
ACCOUNTS_PREFIX = "/mesh"
MESSAGES = "/v1/messages"
FILES = "/files"
RECEIPTS = "/receipts"
MAX_BODY_BYTES = 4 * 2**20
NEED_KEY = (API_PREFIX, ACCOUNTS_PREFIX + FILES, ACCOUNTS_PREFIX + RECEIPTS)


def http_app(
    completer: Completer,
    ask: Ask,
    *,
    clock: Clock,
    shelf: Shelf | None = None,
    book: ReceiptBook | None = None,
) -> ASGIApp:
    """Make the application.

    Args:
        completer: completes for credentials.
        ask: asks a gateway.
        clock: tells the time.
        shelf: takes adapters' files; None where they cannot be published.
        book: has the receipts; None where none are kept.
    """
    more = [] if shelf is None else [_files_route(shelf, ask)]
    if book is not None:
        more.append(_receipts_route(book, ask, clock))

    async def authenticate(request: Request) -> None:
        await _authenticate(completer, _caller(request))

    openai = OpenAIRoutes(completer, _caller, clock, authenticate=authenticate)
    anthropic = AnthropicRoutes(completer, _caller, authenticate=authenticate)
    app = Starlette(
        routes=[
            Mount(API_PREFIX, routes=[one.route() for one in shared_operations(openai, anthropic)]),
            Mount(ACCOUNTS_PREFIX, routes=[*more, *account_routes(ask)]),
        ],
        exception_handlers={HTTPException: _no_such_path, TinkerError: _failed},
    )
    return LocalOnly(_Guard(app))


def _files_route(shelf: Shelf, ask: Ask) -> Route:
    """Take an adapter's files: of anybody whose credential a gateway knows."""

    async def take(request: Request) -> Response:
        await ask(GatewayApi.rpc_models, ListModels(credential=_caller(request)))
        content = await shelf.add(request.stream())
        return Response(orjson.dumps({"content": content}), media_type="application/json")

    return Route(FILES, take, methods=["POST"])


def _receipts_route(book: ReceiptBook, ask: Ask, clock: Clock) -> Route:
    """Give an account its receipts: the gateway says whose the credential is."""

    async def give(request: Request) -> Response:
        query = UsageQuery(credential=_caller(request), since=clock.now())
        report = await ask(GatewayApi.rpc_usage, query)
        assert isinstance(report, UsageReport)
        found = await asyncio.to_thread(book.of_account, report.account_id)
        content = {
            "account_id": report.account_id,
            "client": str(book.client),
            "receipts": [one.as_json() for one in found],
        }
        return Response(orjson.dumps(content), media_type="application/json")

    return Route(RECEIPTS, give, methods=["GET"])


def _caller(request: Request) -> str:
    """Return the key or token that a request carries; the guard has seen that there is one."""
    return credential_of(request.scope)


async def _authenticate(completer: Completer, caller: str) -> None:
    """Ask a gateway whether a credential is anybody's: it alone knows.

    Raises:
        AuthenticationError: it is not.
    """
    try:
        await completer.models(caller)
    except AuthenticationError:
        raise
    except TinkerError:
        return  # it may not list models, or nobody can say


class _Guard:
    """Lets requests through that have a key, and a body of bounded size, not compressed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_files = scope["path"] == ACCOUNTS_PREFIX + FILES
        most = MAX_UPLOAD_BYTES if is_files else MAX_BODY_BYTES
        try:
            if scope["path"].startswith(NEED_KEY) and not credential_of(scope):
                raise AuthenticationError(
                    "Send a key of the mesh as `Authorization: Bearer ...`: `tinkex mesh key "
                    "create` makes one."
                )
            headers = dict(scope["headers"])
            _check_encoding(headers)
            _check_length(headers, most)
        except TinkerError as error:
            await _reply(scope, error)(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise too_long(most)
            return message

        await self._app(scope, bounded, send)


def _check_encoding(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what would be read as it is, and be no JSON: nothing is gained on one machine."""
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip()
    if encoding.lower() not in {"", "identity"}:
        raise status_error(
            415,
            f"Content-Encoding {encoding[:40]!r} is not supported here: send the body as it is.",
        )


def _check_length(headers: Mapping[bytes, bytes], most: int) -> None:
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise status_error(400, "Content-Length is not a number.")
    if int(length) > most:
        raise too_long(most)


def _reply(scope: Scope, error: TinkerError) -> Response:
    path = scope["path"]
    is_anthropics = path.startswith(MESSAGES) or astray(path) == "anthropic"
    return error_reply(error, (anthropic_error_body if is_anthropics else error_body)(error))


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    said = f"There is no {request.method} {path} here. {base_url_hint(path)}".rstrip()
    return _reply(request.scope, status_error(error.status_code, said))


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, TinkerError)
    return _reply(request.scope, error)
