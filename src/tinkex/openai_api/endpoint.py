"""What every endpoint of this face has in common, whoever's API it belongs to.

Owns reading bodies, writing replies, and that errors leave in an API's own form.
"""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.routing import Route

from tinkex.errors import (
    APIStatusError,
    DamagedDataError,
    EngineError,
    InputError,
    StorageError,
)
from tinkex.openai_api.events import ClientGoneError
from tinkex.openai_api.off_loop import off_loop
from tinkex.openai_api.refusal import invalid, status_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import UnionType

    from starlette.requests import Request

    from tinkex.errors import TinkerError
    from tinkex.openai_api.chat_types import ChatReply
    from tinkex.openai_api.completion_types import CompletionsReply

    Endpoint = Callable[["R", Request], Awaitable[Response]]

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")

OFF_LOOP_BYTES = 64 * 2**10
"""A body above this is read in a thread."""
CLIENT_GONE = 499
"""Status in the log of a request whose client hung up; nobody receives it."""


class Operation(NamedTuple):
    """One method of one path: what it takes and gives."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    request: type[BaseModel] | None
    """Type of the body."""
    reply: type[BaseModel] | UnionType
    """Type of the reply; of several, where the path belongs to both APIs."""
    error: type[BaseModel] | UnionType
    """Type of the reply with an error status; as above."""
    streamed: type[BaseModel] | None = None
    """Type of a stream's events."""

    def route(self) -> Route:
        """Make its route."""
        return Route(self.path, self.handler, methods=[self.method])


def answering(
    body_of: Callable[[TinkerError], dict[str, Any]],
) -> Callable[[Endpoint[R]], Endpoint[R]]:
    """Make handlers whose errors leave in an API's form; what is no answer goes on.

    Args:
        body_of: writes the body of an error's reply.
    """

    def make(endpoint: Endpoint[R]) -> Endpoint[R]:
        @wraps(endpoint)
        async def answer(self: R, request: Request) -> Response:
            try:
                return await endpoint(self, request)
            except ClientGoneError:
                return Response(status_code=CLIENT_GONE)
            except (StorageError, DamagedDataError):
                raise
            except (APIStatusError, InputError, EngineError) as error:
                return error_reply(error, body_of(error))

        return answer

    return make


async def read(
    request: Request,
    message: type[M],
    authenticate: Callable[[Request], Awaitable[None]] | None = None,
) -> M:
    """Read a body as a message.

    Args:
        request: has it.
        message: the type.
        authenticate: refuses who has no valid key; called where the body is none, so that a wrong
            key is told first. None: somebody has done so before.

    Raises:
        APIStatusError: it is none.
    """
    body = await request.body()
    try:
        if len(body) > OFF_LOOP_BYTES:
            return await asyncio.to_thread(_parse, body, message)
        return _parse(body, message)
    except APIStatusError:
        if authenticate is not None:
            await authenticate(request)
        raise


def json_reply(message: BaseModel) -> Response:
    """Reply with a message."""
    return Response(message.model_dump_json(), media_type="application/json")


async def choices_reply(reply: ChatReply | CompletionsReply) -> Response:
    """Reply with choices; one after the other where they tell the figures of many tokens."""
    told = any(choice.logprobs is not None for choice in reply.choices)

    def write() -> bytes:
        rest = reply.model_dump_json(exclude={"choices"}).encode()
        choices = b",".join(choice.model_dump_json().encode() for choice in reply.choices)
        return rest[:-1] + b',"choices":[' + choices + b"]}"

    tokens = reply.usage.total_tokens if told and reply.usage is not None else 0
    body = await off_loop(tokens, write)
    return Response(body, media_type="application/json")


def error_reply(error: TinkerError, body: dict[str, Any]) -> Response:
    """Reply with an error."""
    headers: dict[str, str] = {}
    if error.retry_after_ms is not None:
        milliseconds = max(1, round(error.retry_after_ms))
        headers["retry-after"] = str(-(-milliseconds // 1000))
        headers["retry-after-ms"] = str(milliseconds)
    status = status_of(error)
    return Response(orjson.dumps(body), status, headers=headers, media_type="application/json")


def _parse(body: bytes, message: type[M]) -> M:
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error
