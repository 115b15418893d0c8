"""Turn-taking: the calls of one training client reach the server in the order they were made.

Owns the sequence numbers. A call takes its place in the queue when it is made (`reserve`, from
any thread), and is given its numbers when it is sent (`Turn.send`, on the client's loop): the
POST of the next call starts only after the last POST of this one was answered.

Numbers are given at sending time for one reason: a server runs the calls of a model in the order
of their numbers and must wait for a missing one. So a call that fails before its POST (it cannot
be encoded, its custom loss raises, it is cancelled while it waits, there is no key, a circuit
breaker is open) uses no number, and one the server refused with a 4xx gives its number to the next
call. Only a POST whose fate is unknown (a lost connection, a 5xx to the end, a refusal after an
attempt that got no answer) leaves a gap: the number may belong to a request the server holds, and
using it again could hand the next call the wrong answer. The server resolves such a gap by its own
time-out.

A call that fails with part of its gradient on the server, or none of it, must not be followed by
the optim_step that was meant to apply it. `skip_until_seen` therefore fails the calls that are
queued behind it, and those that are made before anybody has read how it ended. Nothing takes back
the part that is there: whoever repeats the call adds it twice, and is told so.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tinkex.errors import (
    APIStatusError,
    CertificateError,
    CircuitOpenError,
    CredentialError,
    InputError,
    SkippedCallError,
    TinkerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType

    from tinkex.client.future import APIFuture

T = TypeVar("T")

_COMPUTING: ContextVar[Sequencer | None] = ContextVar("computing", default=None)
"""Whose call the code that runs is a part of: a custom loss, in its thread."""

_FATE_UNKNOWN = frozenset({408, 409, 425})
"""4xx statuses after which the server may hold the request all the same; a 429 puts it off."""

PART_IS_THERE = (
    "A part of its gradient may be on the server: who sends it again adds that part twice. "
    "load_state_with_optimizer begins without a gradient."
)


class Sequencer:
    """The queue of one training client; numbers start at 1."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Turn | None = None
        self._next_number = 1
        self._failure: _UnseenFailure | None = None

    def reserve(self, future: APIFuture[Any] | None = None) -> Turn:
        """Take the next place in the queue, for the call that `future` will resolve."""
        if future is not None and _COMPUTING.get() is self:
            future.waits_for(threading.current_thread())
        with self._lock:
            turn = Turn(self, self._last, future)
            self._last = turn
            if self._failure is not None and self._failure.seen():
                self._failure = None
            if self._failure is not None:
                self._failure.skip(turn)
        return turn

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Note that what the block starts is a call's own code, for which that call waits."""
        token = _COMPUTING.set(self)
        try:
            yield
        finally:
            _COMPUTING.reset(token)

    def take_number(self) -> int:
        """Use up the next sequence number."""
        number = self._next_number
        self._next_number += 1
        return number

    def give_back(self, number: int) -> None:
        """Return the number of a request the server does not hold, the newest one given."""
        assert number == self._next_number - 1, "turns send one request at a time"
        self._next_number = number

    def skip_until_seen(
        self, cause: BaseException, failed: Turn, *, is_partial: bool = False
    ) -> None:
        """Fail the calls that build on a failed one, until its failure is known.

        Those are the calls queued now, and the ones made before somebody has read the outcome of
        the failed call or of one of these.

        Args:
            cause: why it failed.
            failed: its turn.
            is_partial: whether the server may have a part of its gradient.
        """
        with self._lock:
            self._failure = _UnseenFailure(cause, is_partial, [failed.future])
            turn = self._last
            while turn is not None and turn is not failed and not turn.begun:
                self._failure.skip(turn)
                turn = turn.previous


@dataclass(slots=True)
class _UnseenFailure:
    """A failed call whose caller may not know of it yet."""

    cause: BaseException
    is_partial: bool
    futures: list[APIFuture[Any] | None]
    """Of the failed call and of those skipped for it; reading one of them tells."""

    def seen(self) -> bool:
        return any(future is None or future.outcome_seen for future in self.futures)

    def skip(self, turn: Turn) -> None:
        turn.skipped_for = self
        self.futures.append(turn.future)


class Turn:
    """One call's place in the queue: `async with turn:` waits for it and leaves it in every case.

    Entering raises `SkippedCallError` when a call before it failed that it depends on.
    """

    def __init__(
        self, sequencer: Sequencer, previous: Turn | None, future: APIFuture[Any] | None
    ) -> None:
        self.previous = previous
        self.future = future
        self.adds_gradient = False
        self.begun = False
        self.skipped_for: _UnseenFailure | None = None
        self._sequencer = sequencer
        self._lock = threading.Lock()
        self._entered = False
        self._over: Future[None] = Future()
        self._posting: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        """Wait until every call before this one was answered."""
        with self._lock:
            self._entered = True
            if self._over.done():  # abandoned before it was entered
                raise asyncio.CancelledError
        try:
            await self._wait_for_the_earlier()
            if self.skipped_for is not None:
                cause = self.skipped_for.cause
                advice = PART_IS_THERE if self.skipped_for.is_partial else "Repeat both calls."
                raise SkippedCallError(  # noqa: TRY301 - leaving is the same for every failure
                    f"Not sent: a call made before this one failed ({cause}), and this one was "
                    f"queued to build on it. The client is usable. {advice}"
                ) from cause
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the next call go."""
        self._leave()

    async def send(self, post: Callable[[int], Coroutine[Any, Any, T]]) -> T:
        """Await `post(number)`, the request that carries this call's next number.

        A caller that is cancelled meanwhile does not interrupt the request: whether it reached
        the server would be unknown, and the next call waits until it is known.
        """
        self._posting = asyncio.ensure_future(self._numbered(post))
        return await asyncio.shield(self._posting)

    def future_done(self, future: Future[Any]) -> None:
        """Take note that the call's future is resolved: one that never started leaves the queue.

        Calls queued behind one that was to add a gradient and is cancelled are skipped; those
        made later are not.
        """
        if self.adds_gradient and future.cancelled() and not self._over.done():
            cause = asyncio.CancelledError("it was cancelled")
            was_sent = self._posting is not None
            self._sequencer.skip_until_seen(cause, self, is_partial=was_sent)
        self.abandon_unentered()

    def abandon_unentered(self) -> None:
        """Leave the queue if the call was never started; safe from any thread, at any time."""
        with self._lock:
            if not self._entered and not self._over.done():
                self._over.set_result(None)

    async def _wait_for_the_earlier(self) -> None:
        earlier = self.previous
        while earlier is not None:
            if not earlier._over.done():  # noqa: SLF001 - another turn of the same class
                await asyncio.shield(asyncio.wrap_future(earlier._over))  # noqa: SLF001 - as above
            # one that left the queue without its turn was itself waiting for its predecessor
            earlier = None if earlier.begun else earlier.previous
        self.begun = True
        self.previous = None  # a long queue must not keep finished turns alive

    async def _numbered(self, post: Callable[[int], Coroutine[Any, Any, T]]) -> T:
        number = self._sequencer.take_number()
        try:
            return await post(number)
        except Exception as error:
            if not may_be_held(error):
                self._sequencer.give_back(number)
            raise

    def _leave(self) -> None:
        if self._posting is not None and not self._posting.done():
            self._posting.add_done_callback(self._posted_unwatched)
        elif not self._over.done():
            self._over.set_result(None)

    def _posted_unwatched(self, posting: asyncio.Task[Any]) -> None:
        if not posting.cancelled():
            posting.exception()  # nobody waits for it: it is not an unretrieved error
        self._over.set_result(None)


def may_be_held(error: Exception) -> bool:
    """Whether the server may hold a request that ended in `error`."""
    if isinstance(error, TinkerError) and error.perhaps_done:
        return True
    # our own encoder refused it, there was no key for it, or nobody to send it to
    if isinstance(error, InputError | CredentialError | CertificateError):
        return False
    if isinstance(error, CircuitOpenError):
        return error.tried
    if isinstance(error, APIStatusError):
        return error.status_code >= 500 or error.status_code in _FATE_UNKNOWN
    return True
