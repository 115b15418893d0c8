"""Refusing what a route would ignore: a query parameter it does not take, a body it does not read.

Owns the check alone; what a route takes is in its description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qsl

from pydantic import ValidationError

from tinkex.server.openapi.describe import Query
from tinkex.server.openapi.operations import operations
from tinkex.server.refusal import invalid_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Q = TypeVar("Q", bound=Query)

NO_BODY = (b"", b"{}")
"""What clients send that have nothing to say."""
WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def refuse_what_is_not_taken(routes: Iterable[BaseRoute]) -> None:
    """Put a check before every route that says what it takes."""
    for operation in operations(routes):
        said, route = operation.description, operation.route
        if said is None:
            continue
        if not isinstance(route.app, _Strict):
            route.app = _Strict(route.app)
        takes_body = bool(operation.request_media) or said.unread
        route.app.rules[operation.method] = (said.query, takes_body)


def read_query(request: Request, query: type[Q]) -> Q:
    """Read the query string as the fields that it has.

    Raises:
        APIStatusError: 422 naming each parameter that is unknown, or of a wrong value.
    """
    return _read(request.scope["query_string"], query)


class _Strict:
    """Refuses a request with what its route does not take."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.rules: dict[str, tuple[type[Query], bool]] = {}
        """By method: the query, and whether there is a body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        method = scope["method"]
        rule = self.rules.get("GET" if method == "HEAD" else method)
        if rule is not None:
            query, takes_body = rule
            _read(scope["query_string"], query)
            if not takes_body and method in WITH_BODY:
                receive = await _without_body(receive)
        await self._app(scope, receive, send)


async def _without_body(receive: Receive) -> Receive:
    message = await receive()
    if message.get("body", b"").strip() not in NO_BODY:
        raise invalid_fields("This request takes no body: send none.")
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return message

    return again


def _read(text: bytes, query: type[Q]) -> Q:
    fields: dict[str, str] = {}
    for name, value in parse_qsl(text.decode("latin-1"), keep_blank_values=True):
        if name in fields:
            raise invalid_fields(f"The query parameter {name[:40]!r} is given twice.")
        fields[name] = value
    try:
        return query.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise invalid_fields("; ".join(_line(fault) for fault in faults[:5])) from error


def _line(fault: Mapping[str, object]) -> str:
    place = fault["loc"]
    name = ".".join(map(str, place)) if isinstance(place, tuple) else str(place)
    if fault["type"] == "extra_forbidden":
        return f"the query parameter {name[:40]!r} is not known here"
    return f"the query parameter {name[:40]!r}: {fault['msg']}"
