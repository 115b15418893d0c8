"""Tokens as they are sampled.

Owns the reading of a stream: pieces reach the program one by one, while the server goes on; a slow
reader holds the server's stream back, and one that stops ends the sampling. A stream that breaks
off is an error, never a short result: what came until then was handed out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import weakref
from collections import deque
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import orjson

from tinkex.client.events import acting_for
from tinkex.client.sender import failure_of
from tinkex.client.transport import error_from_reply
from tinkex.errors import (
    APIConnectionError,
    APIResponseValidationError,
    CertificateError,
    CircuitOpenError,
    InputError,
    NotFoundError,
    RequestFailedError,
    TinkerError,
    UnsupportedError,
    WireDecodeError,
)
from tinkex.types import RequestErrorCategory, SampleResponse
from tinkex.wire import endpoints
from tinkex.wire import headers as names
from tinkex.wire.proto import decode_sample_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from tinkex.client.connection import Connection
    from tinkex.client.events import EventSource
    from tinkex.client.future import APIFuture
    from tinkex.client.sample_submission import SampleCall, SampleSubmitter
    from tinkex.client.transport import HttpRequest, Reply, StreamedReply

_PIECES = 64
"""Pieces that wait for their reader at most."""


@dataclass(frozen=True, slots=True)
class SampledPiece:
    """Some tokens of one sequence, as they were sampled."""

    index: int
    """Which of the sequences: 0 .. num_samples - 1."""
    tokens: list[int]
    logprobs: list[float]
    """Natural logarithms, one for each token."""


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing of a stream: the whole response, or why there is none."""

    response: SampleResponse | None = None
    error: BaseException | None = None


class SampleStream:
    """A sample under way: iterate over it, with `for` or `async for`, for its pieces.

    `response` is the whole when the iteration is over. Leave it early by `close`, or use it in a
    `with` block; dropping it ends it too.
    """

    def __init__(self, connection: Connection, reader: StreamReader, source: EventSource) -> None:
        self._connection = connection
        self._pieces = reader.pieces
        self._end: _End | None = None
        self._asked: deque[APIFuture[SampledPiece | _End]] = deque()
        """Whose pieces nobody has taken: the reader was interrupted, and may go on."""
        with acting_for(source):
            self._running = connection.submit(reader.run)
        self._finalizer = weakref.finalize(self, self._running.cancel)

    @property
    def response(self) -> SampleResponse:
        """The whole response.

        Raises:
            InputError: the stream is not over.
        """
        if self._end is None or self._end.response is None:
            raise InputError("The stream is not over: iterate over it to its end first.")
        return self._end.response

    def __iter__(self) -> Iterator[SampledPiece]:
        """Give the pieces as they come.

        Raises:
            RequestFailedError: the server refuses the request (category `user`) or failed.
            APIConnectionError: the stream broke off.
            APIStatusError: an error status, to the end of what `retry_config` allows.
        """
        while self._goes_on():
            with self._next() as coming:
                item = coming.result()
            piece = self._taken(item)
            if piece is not None:
                yield piece

    async def __aiter__(self) -> AsyncIterator[SampledPiece]:
        """Give the pieces as they come; errors as of `for`."""
        while self._goes_on():
            with self._next() as coming:
                item = await coming
            piece = self._taken(item)
            if piece is not None:
                yield piece

    def close(self) -> None:
        """End the stream, and the sampling on the server. Idempotent."""
        if self._end is None:
            self._end = _End(error=_closed())
        self._finalizer()

    def __enter__(self) -> Self:
        """Use the stream in a `with` block, which closes it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _goes_on(self) -> bool:
        if self._end is not None and self._end.error is not None:
            raise self._end.error
        return self._end is None

    @contextmanager
    def _next(self) -> Iterator[APIFuture[SampledPiece | _End]]:
        """Give what the next piece comes to; it is kept for later when the wait is interrupted."""
        if self._asked:
            coming = self._asked.popleft()
        else:
            coming = self._connection.submit(self._pieces.get).kept()
        try:
            yield coming
        except BaseException:
            self._asked.appendleft(coming)
            raise

    def _taken(self, item: SampledPiece | _End) -> SampledPiece | None:
        if isinstance(item, SampledPiece):
            return item
        self._end = item
        if item.error is not None:
            raise item.error
        return None


class StreamReader:
    """Reads one stream into a queue; knows nothing of who takes it out.

    Args:
        connection: to the server.
        call: the request and how it is repeated until the server takes it.
        submitter: waits between two attempts.
    """

    def __init__(
        self, connection: Connection, call: SampleCall, submitter: SampleSubmitter
    ) -> None:
        self._connection = connection
        self._call = call
        self._submitter = submitter
        self.pieces: asyncio.Queue[SampledPiece | _End] = asyncio.Queue(_PIECES)
        self._sequence_ids: list[str] = []

    async def run(self) -> None:
        """Read to the end; whatever happens, the reader is told."""
        sender = self._connection.sender
        try:
            with sender.events.operation(
                "sample", num_samples=self._call.request.num_samples, stream=True
            ):
                end = _End(response=await self._read())
        except asyncio.CancelledError:
            while not self.pieces.empty():  # make room: whoever reads in another thread is told
                self.pieces.get_nowait()
            self.pieces.put_nowait(_End(error=_closed()))
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where the pieces are read
            end = _End(error=error)
        await self.pieces.put(end)

    async def _read(self) -> SampleResponse:
        server = await self._connection.server()
        request = self._connection.sender.request(
            endpoints.SAMPLE_STREAM,
            self._call.request,
            headers={names.ACCEPT: "text/event-stream"},
            sdk_method=self._call.sdk_method,
        )
        while True:
            await self._connection.limiter.wait()
            async with AsyncExitStack() as held:
                await held.enter_async_context(server.samples.hold())
                outcome = await self._attempt(request)
            if isinstance(outcome, SampleResponse):
                return outcome
            await self._submitter.wait_to_repeat(self._call, *outcome)

    async def _attempt(self, request: HttpRequest) -> Any:
        """Read one stream: the response, or the failure and its error when it never began."""
        started = False
        try:
            async with self._connection.sender.stream(request) as streamed:
                if streamed.reply.status >= 300:
                    return self._refusal(await streamed.read())
                async for event in _events(streamed):
                    started = True
                    response = await self._take(event)
                    if response is not None:
                        return response
        except (CertificateError, CircuitOpenError):
            raise  # another attempt would change nothing
        except APIConnectionError as error:
            if started:
                raise APIConnectionError(
                    f"The stream broke off ({error}). What came until then was handed out; sample "
                    "again for the rest.",
                    request=error.request,
                ) from error
            return self._submitter.no_answer(error)
        raise APIConnectionError(
            "The stream ended without its last event: the server, or a proxy, closed it. Sample "
            "again."
        )

    def _refusal(self, reply: Reply) -> Any:
        error = error_from_reply(reply)
        if isinstance(error, NotFoundError) and "sample_stream" in str(error):
            raise UnsupportedError(
                "This server does not stream samples; use sample(). `tinkex serve` does."
            ) from error
        return failure_of(reply, error), error

    async def _take(self, event: dict[str, Any]) -> SampleResponse | None:
        """Hand out what an event brings; return the response when it is the last one."""
        try:
            match event["type"]:
                case "started":
                    self._sequence_ids = [str(one) for one in event["sequence_ids"]]
                case "tokens":
                    piece = SampledPiece(event["index"], event["tokens"], event["logprobs"])
                    await self.pieces.put(piece)
                case "finished":
                    raw = base64.b64decode(event["response"], validate=True)
                    return decode_sample_response(raw, self._sequence_ids)
                case "error":
                    raise RequestFailedError(
                        f"The request failed: {event['error']}",
                        category=RequestErrorCategory.parse(str(event.get("category", ""))),
                    )
        except (KeyError, TypeError, binascii.Error, WireDecodeError) as error:
            raise _misread(error) from error
        return None  # of a kind that is newer than this client, or one of the above


async def _events(streamed: StreamedReply) -> AsyncIterator[dict[str, Any]]:
    """Read server-sent events as they come; only their data lines count (WHATWG HTML, 9.2)."""
    reply = streamed.reply
    if reply.content_type != "text/event-stream":
        raise APIResponseValidationError(
            f"The stream is {reply.content_type or 'of no type'}, not text/event-stream. Does the "
            "base URL lead to a Tinker server?",
            status_code=reply.status,
            response=lambda: reply.response,
        )
    async for line in streamed.lines():
        if line.startswith("data:"):
            try:
                event = orjson.loads(line.removeprefix("data:"))
            except ValueError as error:
                raise _misread(error) from error
            if not isinstance(event, dict):
                raise _misread(TypeError())
            yield event


def _closed() -> InputError:
    return InputError("This stream was closed before its end.")


def _misread(error: Exception) -> TinkerError:
    return APIResponseValidationError(
        f"An event of the stream cannot be understood ({type(error).__name__})."
    )
