"""A completion on its way through the mesh, as its reader sees it.

Owns reading a gateway's stream ahead of a slow reader, signs of life, and the digest of all that
came. Which gateway it is, and going to another, is `gateways`'; what becomes of a receipt, the
completer's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import NamedTuple

from tinkex._clock import Clock
from tinkex._timers import Timer, Timers
from tinkex.errors import MeshError, PeerProtocolError, PeerTimeoutError, TinkerError, status_error
from tinkex.mesh.api.completion import PieceMessage, piece_of
from tinkex.mesh.api.gateway import (
    Accepted,
    Complete,
    CompletionEvent,
    Finished,
    GatewayApi,
    Receipt,
    Resumed,
)
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.receipts import OutputDigest, ReceiptBody
from tinkex.mesh.workers.calling.gateways import Gateways
from tinkex.mesh.workers.request_log import log_ended
from tinkex.openai_api.completer import Piece

_LOG = logging.getLogger("tinkex.mesh.client")
STILL_HERE_S = 5.0
"""A reader is told that nothing came, this often."""
WAITING_PIECES = 64
"""Pieces that wait for a slow reader, before the gateway is made to wait."""


class _End(NamedTuple):
    """Nothing more comes."""

    error: TinkerError | None = None


class MeshCompletion:
    """A request on its way. Made by `MeshCompleter.complete`.

    Args:
        message: what is asked.
        gateways: do it.
        on_receipt: given the receipt and who signed it; returns it if it says what came.
        tasks: owns what reads ahead.
        timers: of the event loop.
        clock: tells the time.
    """

    def __init__(
        self,
        message: Complete,
        gateways: Gateways,
        on_receipt: Callable[[Contact, Receipt, MeshCompletion], ReceiptBody | None],
        tasks: Tasks,
        timers: Timers,
        *,
        clock: Clock,
    ) -> None:
        self._message = message
        self._gateways = gateways
        self._on_receipt = on_receipt
        self._timers = timers
        self._clock = clock
        self._unfinished = set(range(message.request.n))
        self._asked_at = clock.monotonic()
        self._tokens = 0
        self._came: deque[Piece | _End] = deque()
        self._news = asyncio.Event()
        """Set while something came that was not read."""
        self._room = asyncio.Event()
        self._silent = False
        """Whether nothing came for a while, of which the reader was not told."""
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._accepted: Accepted | None = None
        self.seen = OutputDigest(message.request.n)
        """Of all that came."""
        self.reproducible = True
        """Whether the same seed would give the same tokens again, as far as is known."""
        self.receipt: ReceiptBody | None = None
        """A moment after all has come, if it says what came; `settled` waits for it."""
        self._finished: Finished | None = None
        self._reading = tasks.spawn(self._read(), name="read a completion")
        self._timer: Timer | None = None
        """Says that nothing came; there while somebody reads."""

    async def begun(self) -> None:
        """Wait until a processor has taken the request.

        Raises:
            TinkerError: it failed before.
        """
        try:
            await self._begun
        except BaseException:
            self.cancel()
            raise

    @property
    def accepted(self) -> Accepted:
        """What the gateway said first; the last gateway, if there were several."""
        assert self._accepted is not None, "it has begun"
        return self._accepted

    @property
    def request_id(self) -> str:
        """Names it, in logs and replies."""
        return self.accepted.request_id

    @property
    def prompt_tokens(self) -> int:
        """Size of the prompt; 0 where it is known after the last piece only."""
        if self._finished is not None:
            return self._finished.prompt_tokens
        return self.accepted.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed anew; known after the last piece."""
        return 0 if self._finished is None else self._finished.cached_tokens

    async def settled(self) -> ReceiptBody | None:
        """Wait for the receipt; None where none came that says what came."""
        await asyncio.gather(self._reading, return_exceptions=True)
        return self.receipt

    def cancel(self) -> None:
        """End the sampling: nobody wants what is still to come. Harmless after the end."""
        if self._timer is not None:
            self._timer.cancel()
        if self._finished is None:  # else nothing but the receipt is still to come
            self._reading.cancel()

    async def pieces(self) -> AsyncIterator[Piece | None]:
        """Give the completions piece by piece; None every few seconds in which nothing comes.

        Raises:
            TinkerError: the request failed.
        """
        self._timer = self._timers.call_later(STILL_HERE_S, self._still_here)
        try:
            while True:
                if not (self._came or self._silent):
                    self._news.clear()
                    await self._news.wait()
                found = self._next()
                if isinstance(found, _End):
                    break
                yield found
            if found.error is not None:
                raise found.error
        finally:
            self.cancel()

    def _next(self) -> Piece | _End | None:
        self._silent = False
        if not self._came:
            return None
        self._room.set()
        return self._came.popleft()

    def _give(self, found: Piece | _End) -> None:
        self._came.append(found)
        self._news.set()

    async def _read(self) -> None:
        error: TinkerError | None = None
        stream = self._gateways.stream(GatewayApi.rpc_complete, self._message)
        try:
            async with aclosing(stream) as events:
                used: bool | None = None
                while True:
                    contact, event = await events.asend(used)  # type: ignore[arg-type]
                    used = await self._take(contact, event)
        except StopAsyncIteration:
            if self._unfinished:
                error = status_error(502, "The gateway's stream stopped before its end.")
        except TinkerError as found:
            if self._unfinished:  # else nothing but the receipt is missing
                error = _told(found)
        except asyncio.CancelledError:
            self._log("left")
            raise
        if self._finished is None:
            self._fail(error)
            self._give(_End(error))
        self._log(type(error).__name__ if error is not None else "ok")

    def _log(self, outcome: str) -> None:
        log_ended(
            _LOG,
            "" if self._accepted is None else self._accepted.request_id,
            outcome,
            prompt_tokens=0 if self._accepted is None else self.prompt_tokens,
            completion_tokens=self._tokens,
            seconds=round(self._clock.monotonic() - self._asked_at, 4),
        )

    def _fail(self, error: TinkerError | None) -> None:
        if not self._begun.done():
            self._begun.set_exception(error or status_error(502, "The gateway said nothing."))
            self._begun.exception()  # it may be that nobody waits any more

    async def _take(self, contact: Contact, event: CompletionEvent) -> bool:
        """Take an event; whether a reader has seen something of it."""
        if isinstance(event, Accepted):
            self._accepted = event
            self.reproducible = event.reproducible
            if not self._begun.done():
                self._begun.set_result(None)
            return False
        if isinstance(event, Resumed):
            self.reproducible = event.reproducible
            return False
        if isinstance(event, Finished):
            if self._unfinished:
                raise PeerProtocolError("a gateway ends a stream before its completions")
            self._finished = event
            self._give(_End())
            return False
        if isinstance(event, Receipt):
            self.receipt = self._on_receipt(contact, event, self)
            return False
        self._check(event)
        self._give(piece_of(event))
        while len(self._came) >= WAITING_PIECES:
            self._room.clear()
            await self._room.wait()
        return True

    def _check(self, piece: PieceMessage) -> None:
        if piece.index not in self._unfinished or self._accepted is None:
            raise PeerProtocolError("a gateway sends what cannot follow")
        if piece.finish_reason is not None:
            self._unfinished.discard(piece.index)
        if not piece.echo:
            self._tokens += len(piece.tokens)
            try:
                self.seen.add(piece.index, [token.token for token in piece.tokens], piece.text)
            except ValueError:
                raise PeerProtocolError("a gateway sends a token that is none") from None

    def _still_here(self) -> None:
        if not self._came:
            self._silent = True
            self._news.set()
        self._timer = self._timers.call_later(STILL_HERE_S, self._still_here)


def _told(error: TinkerError) -> TinkerError:
    """Turn what happened between peers into what a program of OpenAI's API understands."""
    if isinstance(error, PeerTimeoutError):
        return status_error(504, "The mesh did not answer in time.")
    if isinstance(error, MeshError):
        return status_error(
            502, "The gateway was lost in the middle of this completion: send the request again."
        )
    return error
