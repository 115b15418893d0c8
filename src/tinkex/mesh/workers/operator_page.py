"""The part of an auth worker's page that names users and changes things: for who runs it alone.

Owns who may ask. Loopback is open to every user of a machine, so each request shows a token, which
is new with each start and lies in a file of the worker's folder that its owner alone can read.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import msgspec
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tinkex._files import write_whole
from tinkex.errors import AuthenticationError, BadRequestError, TinkerError
from tinkex.mesh.workers.authority.operator import Operator
from tinkex.mesh.workers.http import read_body, tell_error

FILE_NAME = "operator.json"
TOKEN_BYTES = 32
MAX_BODY_BYTES = 16 * 1024


class Pass(msgspec.Struct, frozen=True):
    """What the file says: where to ask, and what to show."""

    url: str
    token: str

    def __repr__(self) -> str:
        """Leave the token out."""
        return f"Pass({self.url!r})"


class SetQuota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that sets a quota."""

    account: str
    """Id or address."""
    quota_tokens: int | None


class OperatorPage:
    """Answers below `/operator`.

    Args:
        operator: does it.
        token: what a request has to show, in hexadecimal.
    """

    def __init__(self, operator: Operator, token: str) -> None:
        self._operator = operator
        self._token = token
        self._app: ASGIApp = Starlette(
            routes=[
                Route("/accounts", self._accounts, methods=["GET"]),
                Route("/quota", self._quota, methods=["PUT"]),
            ],
            exception_handlers={TinkerError: tell_error},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with 401."""
        if scope["type"] == "http" and not self._is_operator(scope):
            error = AuthenticationError(f"Show the token of {FILE_NAME} in the worker's folder.")
            reply = await tell_error(Request(scope), error)
            await reply(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_operator(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, f"Bearer {self._token}".encode())

    async def _accounts(self, request: Request) -> Response:
        return _json(self._operator.accounts(request.query_params.get("account", "")))

    async def _quota(self, request: Request) -> Response:
        wanted = await _read(request)
        return _json(await self._operator.set_quota(wanted.account, wanted.quota_tokens))


def write_pass(folder: Path, url: str, token: str) -> None:
    """Tell who owns the folder where to ask, and what to show."""
    write_whole(folder / FILE_NAME, msgspec.json.encode(Pass(url, token)))


async def _read(request: Request) -> SetQuota:
    found = await read_body(request, MAX_BODY_BYTES)
    try:
        return msgspec.convert(orjson.loads(found), SetQuota)
    except ValueError as error:
        raise BadRequestError(f"The request does not fit: {error}.") from None


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
