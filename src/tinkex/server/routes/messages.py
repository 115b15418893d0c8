"""Reading requests and writing replies, the same way for every route.

Owns JSON in and out and the words for a message that does not fit. The messages themselves are
`tinkex.types`.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from tinkex.server.http.bodies import OFF_LOOP_BYTES
from tinkex.server.refusal import bad_request, invalid_fields, unavailable
from tinkex.server.storage.checkpoints import parse_id
from tinkex.types import UntypedAPIFuture

if TYPE_CHECKING:
    from starlette.requests import Request

    from tinkex.server.accounts.caller import Caller
    from tinkex.server.futures import Future
    from tinkex.server.storage.blobs import CheckpointKey

M = TypeVar("M", bound=BaseModel)

MAX_FAULTS = 5
DISK_RETRY_S = 5.0


def caller_of(request: Request) -> Caller:
    """Return who sent a request, and what they may do: the authentication put it there."""
    caller: Caller = request.state.caller
    return caller


def owner_of(request: Request) -> str:
    """Return the id of the account that sent a request."""
    return caller_of(request).owner


def key_in_path(request: Request) -> CheckpointKey:
    """Return the checkpoint that the address names: `.../{run_id}/checkpoints/{kind}/{name}`.

    Raises:
        InputError: of a kind that this server does not keep.
    """
    parts = request.path_params
    return parse_id(parts["run_id"], f"{parts['kind']}/{parts['name']}")


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


async def future_reply(future: Future, **fields: Any) -> Response:
    """Reply that a request is accepted, once it is kept where it outlives this process.

    Raises:
        APIStatusError: 503 when the disk does not take it; nothing of it is there then.
    """
    if future.accepted is not None:
        try:
            await asyncio.shield(future.accepted)
        except sqlite3.Error as error:
            raise unavailable(
                f"The server's disk does not take requests just now ({error}). Nothing was done; "
                "send this one again. Whoever runs the server must make room on its disk.",
                retry_after_s=DISK_RETRY_S,
            ) from error
    return message_reply(UntypedAPIFuture(request_id=future.request_id, **fields))


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
