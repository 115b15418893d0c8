"""Reading requests and writing replies, the same way for every route.

Owns JSON in and out and the words for a message that does not fit. The messages themselves are
`tinkex.types`.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from tinkex.server.bodies import OFF_LOOP_BYTES
from tinkex.server.refusal import bad_request, invalid_fields

if TYPE_CHECKING:
    from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)

MAX_FAULTS = 5


def owner_of(request: Request) -> str:
    """Return who sent a request: the authentication put it there."""
    return str(request.state.owner)


async def read_json(request: Request, message: type[M]) -> tuple[M, bytes]:
    """Read a body as a message: (the message, a digest that tells it from every other).

    Raises:
        APIStatusError: 400 for what is no JSON, 422 naming each field that does not fit.
    """
    body = await request.body()
    if len(body) > OFF_LOOP_BYTES:
        return await asyncio.to_thread(_parse, body, message)
    return _parse(body, message)


def _parse(body: bytes, message: type[M]) -> tuple[M, bytes]:
    digest = hashlib.blake2b(body, digest_size=16).digest()
    try:
        return message.model_validate_json(body), digest
    except ValidationError as error:
        raise _explain(error) from error


def json_reply(content: Any, status: int = 200) -> Response:
    """Reply with plain JSON values."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def message_reply(message: BaseModel) -> Response:
    """Reply with a message."""
    return Response(message.model_dump_json(), media_type="application/json")


def query_number(request: Request, name: str, default: int, *, lowest: int, highest: int) -> int:
    """Read a whole number of the query string.

    Raises:
        APIStatusError: 400 for what is none, or out of bounds.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = int(text)
    except ValueError:
        number = lowest - 1
    if not lowest <= number <= highest:
        raise bad_request(f"{name}={text[:40]!r} must be a whole number, {lowest}..{highest}.")
    return number


def _explain(error: ValidationError) -> Exception:
    """Say in one message which fields do not fit and why."""
    faults = error.errors(include_url=False, include_input=False)
    if faults and faults[0]["type"] == "json_invalid":
        return bad_request(f"The body is not valid JSON: {faults[0]['msg']}.")
    lines = []
    for fault in faults[:MAX_FAULTS]:
        where = ".".join(str(part) for part in fault["loc"]) or "body"
        unknown = fault["type"] == "extra_forbidden"
        lines.append(f"{where}: {'this server knows no such field' if unknown else fault['msg']}")
    if len(faults) > MAX_FAULTS:
        lines.append(f"and {len(faults) - MAX_FAULTS} more")
    return invalid_fields("; ".join(lines))
