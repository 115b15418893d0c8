"""Tokens on their way from the engine's thread to a client that reads them as they come.

Owns the crossing between the thread and the event loop, and the events of a stream
(`text/event-stream`, one JSON object each):

    {"type": "started", "sequence_ids": [...]}
    {"type": "tokens", "index": 0, "tokens": [...], "logprobs": [...]}      any number of them
    {"type": "finished", "stop_reasons": [...], "response": BASE64}         (a SampleResponse)
    {"type": "error", "error": ..., "category": ...}                        instead of it

A comment line goes out when nothing else does, so that neither end takes the other for dead.
"""

from __future__ import annotations

import base64
from collections import deque
from typing import TYPE_CHECKING, Any

import orjson

from tinkex.errors import InputError
from tinkex.wire.proto import encode_sample_response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable

    from tinkex.engine.sampling.sequence import SampledToken
    from tinkex.server.futures import Future, FutureStore

KEEP_ALIVE_S = 10.0
_KEEP_ALIVE = b": still here\n\n"


class TokenStream:
    """Tokens that were sampled and not sent yet.

    Args:
        loop: that the client is served on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[SampledToken] = deque()
        self._woken = False
        self.on_ready: Callable[[], None] | None = None
        """Called on the loop when there is something to take."""

    def push(self, token: SampledToken) -> None:
        """Add a token; called in the engine's thread."""
        self._pending.append(token)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake)

    def take(self) -> list[SampledToken]:
        """Return what came since the last call."""
        found = []
        while self._pending:
            found.append(self._pending.popleft())
        return found

    def _wake(self) -> None:
        self._woken = False
        if self.on_ready is not None:
            self.on_ready()


async def events(
    futures: FutureStore, future: Future, sequence_ids: list[str], tokens: TokenStream
) -> AsyncGenerator[bytes, None]:
    """Give the events of a sample as they happen; a client that goes away ends the sample."""
    try:
        yield _event({"type": "started", "sequence_ids": sequence_ids})
        while True:
            done = future.done  # before the tokens are taken: none comes after it
            came = tokens.take()
            for piece in _by_sequence(came):
                yield _event(piece)
            if done:
                break
            if not came and not await something_happened(futures, future, tokens):
                yield _KEEP_ALIVE
        yield _event(_end(future))
    finally:
        future.cancel(InputError("The client of this stream went away."))
        future.mark_delivered()


async def something_happened(futures: FutureStore, future: Future, tokens: TokenStream) -> bool:
    """Wait for tokens or the end; say whether they came before `KEEP_ALIVE_S`."""
    happened = False

    with futures.waiter(future, KEEP_ALIVE_S) as waiter:

        def ready() -> None:
            nonlocal happened
            happened = True
            waiter.wake()

        tokens.on_ready = ready
        try:
            await waiter
        finally:
            tokens.on_ready = None
    return happened or future.done


def _by_sequence(tokens: list[SampledToken]) -> list[dict[str, Any]]:
    """Write tokens as events, those of each sequence together."""
    found: dict[int, dict[str, Any]] = {}
    for one in tokens:
        event = found.setdefault(
            one.sequence, {"type": "tokens", "index": one.sequence, "tokens": [], "logprobs": []}
        )
        event["tokens"].append(one.token)
        event["logprobs"].append(one.logprob)
    return list(found.values())


def _end(future: Future) -> dict[str, Any]:
    if future.error is not None:
        category = str(future.error.category)
        return {"type": "error", "error": str(future.error), "category": category}
    response = future.result
    return {
        "type": "finished",
        "stop_reasons": [str(sequence.stop_reason) for sequence in response.sequences],
        "response": base64.b64encode(encode_sample_response(response)).decode(),
    }


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
