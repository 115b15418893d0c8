"""A completion on its way through the mesh, as its reader sees it.

Owns reading a gateway's stream ahead of a slow reader, going to another gateway as long as nothing
was read, signs of life, and the digest of all that came. No task reads: what comes is taken where
it comes. Which gateways there are is `gateways`' business; what becomes of a receipt, the
completer's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

from tinkex._clock import Clock
from tinkex._timers import Timer, Timers
from tinkex.errors import (
    LinkClosedError,
    MeshError,
    PeerProtocolError,
    PeerTimeoutError,
    TinkerError,
    status_error,
)
from tinkex.mesh.api.completion import PieceMessage, is_sign_of_life, piece_of
from tinkex.mesh.api.gateway import (
    Accepted,
    Complete,
    CompletionEvent,
    Finished,
    GatewayApi,
    Receipt,
    Resumed,
)
from tinkex.mesh.rpc.replies import Replies
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.receipts import OutputDigest, ReceiptBody
from tinkex.mesh.workers.calling.gateways import Gateways, nobody, telling
from tinkex.mesh.workers.request_log import log_ended
from tinkex.openai_api.completer import Piece

_LOG = logging.getLogger("tinkex.mesh.client")
STILL_HERE_S = 5.0
"""A reader is told that nothing came, this often."""
WAITING_PIECES = 64
"""Pieces that wait for a slow reader, before the gateway is made to wait."""


class _End(NamedTuple):
    """Nothing more comes."""

    error: BaseException | None = None


class MeshCompletion:
    """A request on its way. Made by `MeshCompleter.complete`.

    Args:
        message: what is asked.
        gateways: do it.
        on_receipt: given the receipt and who signed it; returns it if it says what came.
        tasks: owns the making of links.
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
        self._tasks = tasks
        self._contacts: Iterator[Contact] = iter(())
        """Gateways that were not asked yet."""
        self._contact: Contact | None = None
        """Who was asked last."""
        self._problem: TinkerError | None = None
        """What is told where no gateway is left."""
        self._replies: Replies[CompletionEvent] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._used = False
        """Whether the reader may have something: from then on there is no other gateway."""
        self._over: asyncio.Future[None] = self._begun.get_loop().create_future()
        self._timer: Timer | None = None
        """Says that nothing came; there while somebody reads."""

    async def begin(self) -> None:
        """Ask; returns when a processor has taken the request.

        Raises:
            TinkerError: it failed before.
        """
        try:
            self._contacts = iter(await self._gateways.tried())
            self._ask_next()
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
        await asyncio.shield(self._over)
        return self.receipt

    def cancel(self) -> None:
        """End the sampling: nobody wants what is still to come. Harmless after the end."""
        if self._timer is not None:
            self._timer.cancel()
        # Once it has finished, nothing but the receipt is still to come.
        if self._finished is None and not self._over.done():
            self._close()
            self._log("left")

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
        found = self._came.popleft()
        if len(self._came) == WAITING_PIECES - 1:
            self._take_all()
        return found

    def _give(self, found: Piece | _End) -> None:
        self._came.append(found)
        self._news.set()

    def _ask_next(self) -> None:
        """Ask a gateway that was not asked yet."""
        for contact in self._contacts:
            self._contact = contact
            try:
                replies = self._gateways.stream(contact, GatewayApi.rpc_complete, self._message)
            except TinkerError as error:
                if not self._gateways.elsewhere(contact, error):
                    self._end(error)
                    return
                self._problem = telling(self._problem, error)
                continue
            self._replies = replies
            if replies.sent:
                replies.listen(self._take_all)
            else:
                name = f"link to {contact.peer_id.short}"
                self._opening = self._tasks.spawn(self._open(replies), name=name)
                self._opening.add_done_callback(self._opened)
            return
        self._end(nobody(self._problem))

    async def _open(self, replies: Replies[CompletionEvent]) -> None:
        try:
            await replies.open()
            replies.listen(self._take_all)
        except TinkerError as error:
            self._failed(error)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        """However it ended, and were it before its first step: nobody waits for ever."""
        if opening.cancelled():
            self._end(LinkClosedError("this worker stops"))
        elif (error := opening.exception()) is not None:
            self._end(error)

    def _take_all(self) -> None:
        """Take what came, as long as there is room for it; the receipt needs none."""
        assert self._replies is not None, "a gateway was asked"
        try:
            while not self._over.done():
                if len(self._came) >= WAITING_PIECES and self._finished is None:
                    return
                try:
                    event = self._replies.take()
                except TinkerError as error:
                    self._failed(error)
                    return
                if event is None:
                    if self._replies.ended:
                        self._end(None)
                    return
                self._take(event)
        except Exception as error:  # noqa: BLE001 - told by a link, which serves others too
            self._end(error)

    def _failed(self, error: TinkerError) -> None:
        """Go on at another gateway, if that is possible."""
        assert self._contact is not None, "a gateway was asked"
        if self._used or not self._gateways.elsewhere(self._contact, error):
            self._end(error)
            return
        if self._replies is not None:
            self._replies.close()
        self._problem = telling(self._problem, error)
        self._ask_next()

    def _end(self, error: BaseException | None) -> None:
        if self._over.done():
            return
        self._close()
        if not self._unfinished:
            error = None  # nothing but the receipt is missing
        elif error is None:
            error = status_error(502, "The gateway's stream stopped before its end.")
        elif isinstance(error, TinkerError):
            error = _told(error)
        if self._finished is None:
            self._fail(error)
            self._give(_End(error))
        self._log(type(error).__name__ if error is not None else "ok")

    def _close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._replies is not None:
            self._replies.close()
        self._over.set_result(None)

    def _log(self, outcome: str) -> None:
        log_ended(
            _LOG,
            "" if self._accepted is None else self._accepted.request_id,
            outcome,
            prompt_tokens=0 if self._accepted is None else self.prompt_tokens,
            completion_tokens=self._tokens,
            seconds=round(self._clock.monotonic() - self._asked_at, 4),
        )

    def _fail(self, error: BaseException | None) -> None:
        if not self._begun.done():
            self._begun.set_exception(error or status_error(502, "The gateway said nothing."))
            self._begun.exception()  # it may be that nobody waits any more

    def _take(self, event: CompletionEvent) -> None:
        if isinstance(event, Accepted):
            self._accepted = event
            self.reproducible = event.reproducible
            if not self._begun.done():
                self._begun.set_result(None)
            return
        if isinstance(event, Resumed):
            self.reproducible = event.reproducible
            return
        if isinstance(event, Finished):
            if self._unfinished or self._finished is not None:
                raise PeerProtocolError("a gateway ends a stream before its completions, or twice")
            self._finished = event
            self._give(_End())
            return
        if isinstance(event, Receipt):
            assert self._contact is not None, "a gateway was asked"
            self.receipt = self._on_receipt(self._contact, event, self)
            return
        if is_sign_of_life(event):
            return  # it ends the silence of the link; the reader hears more often that nothing came
        self._check(event)
        self._used = True
        self._give(piece_of(event))

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
