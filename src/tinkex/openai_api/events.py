"""Replies that are streams of server-sent events, and noticing that a client has gone.

Owns the form of events, that an error before the first one is an ordinary reply, and that nothing
goes on for a client that hung up. Knows nothing of what the events say.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import StreamingResponse

from tinkex.errors import TinkerError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

T = TypeVar("T")

STILL_HERE = b": still here\n\n"
"""A comment, so that neither end takes the other for dead."""


class ClientGoneError(Exception):
    """The client hung up: there is nobody to answer."""


def event(data: bytes | str, name: str | None = None) -> bytes:
    """Write an event."""
    raw = data.encode() if isinstance(data, str) else data
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + raw + b"\n\n"


class EventReply(StreamingResponse):
    """A stream whose source is closed with it, also when it never began."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the stream, as long as the client is there."""
        # Starlette's own way ends the source by a cancel scope, in which each `await` is cancelled
        # anew: what winds up what was begun would never come to its end.
        sending = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(self.listen_for_disconnect(receive))
        try:
            if await _ended_before(sending, gone):
                await sending
        finally:
            await self._events.aclose()


async def stream(
    request: Request,
    events: AsyncGenerator[bytes, None],
    on_error: Callable[[TinkerError], bytes],
) -> EventReply:
    """Begin to reply with events, when the first has come.

    Args:
        request: whose client may hang up.
        events: closed at the end, whatever happens.
        on_error: writes the event that ends a stream which fails.

    Raises:
        TinkerError: it failed before there was an event.
        ClientGoneError: the client hung up before.
    """
    try:
        first = await unless_gone(request, anext(events))
    except StopAsyncIteration:
        first = b""
    except BaseException:
        await events.aclose()
        raise
    return EventReply(_rest(first, events, on_error))


async def _rest(
    first: bytes, events: AsyncGenerator[bytes, None], on_error: Callable[[TinkerError], bytes]
) -> AsyncGenerator[bytes, None]:
    try:
        yield first
        async for one in events:
            yield one
    except TinkerError as error:
        yield on_error(error)
    finally:
        await events.aclose()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, and stop it when the client hangs up.

    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    if not await _ended_before(task, gone):
        raise ClientGoneError
    return await task


async def _ended_before(task: asyncio.Future[Any], gone: asyncio.Future[None]) -> bool:
    """Wait for the end of a task, and cancel it if the client is gone before; say whether not."""
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    await request.body()
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def heard(pieces: AsyncIterator[T | None]) -> AsyncIterator[T]:
    """Leave out the signs of life."""
    async for piece in pieces:
        if piece is not None:
            yield piece
