"""The caller's end of one call: what its replies wait in until they are read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Reading(Protocol):
    """What a call's reader tells its link."""

    def consumed(self, call_id: int, body: bytes) -> None:
        """A reply was read."""

    def dropped(self, call: OutgoingCall) -> None:
        """Nobody reads any more, and the call has not ended."""


class OutgoingCall:
    """A call that this side made: replies come in, and are read one by one."""

    __slots__ = (
        "_bodies",
        "_error",
        "_link",
        "_listener",
        "_waiter",
        "began",
        "call_id",
        "ended",
        "items",
        "method",
        "reply_bytes",
        "request_bytes",
    )

    def __init__(
        self, call_id: int, method: str, request_bytes: int, began: float, link: Reading
    ) -> None:
        self.call_id = call_id
        self.method = method
        self.began = began
        self.request_bytes = request_bytes
        self.items = 0
        self.reply_bytes = 0
        self.ended = False
        self._link = link
        self._bodies: deque[bytes] = deque()
        self._error: Callable[[], BaseException] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Callable[[], None] | None = None

    def came(self, bodies: tuple[bytes, ...]) -> None:
        """Take replies that arrived."""
        self._bodies.extend(bodies)
        self._error = None  # given up a moment too early: nobody has looked yet
        self.items += len(bodies)
        self.reply_bytes += sum(map(len, bodies))
        self._notify()

    def end(self, error: Callable[[], BaseException] | None = None) -> None:
        """Take the end: an orderly one, or an error, which is raised after what came before it."""
        self.ended = True
        self._error = error
        self._notify()

    def take(self) -> bytes | None:
        """Take the next reply if it is here."""
        if not self._bodies:
            return None
        body = self._bodies.popleft()
        if not self.ended:  # else nobody sends more of it
            self._link.consumed(self.call_id, body)
        return body

    @property
    def waiting(self) -> int:
        """How many replies are here."""
        return len(self._bodies)

    @property
    def over(self) -> bool:
        """Whether it has ended, and every reply was taken."""
        return self.ended and not self._bodies

    def check(self) -> None:
        """Raise the error with which it ended, if it did, and every reply was taken."""
        if self._error is not None and not self._bodies:
            raise self._error()

    async def next(self) -> bytes | None:
        """Wait for the next reply; None at the end.

        Raises:
            TinkerError: the call failed.
        """
        while (body := self.take()) is None:
            self.check()
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return body

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever something comes, and at the end."""
        self._listener = callback

    def give_up(self, error: Callable[[], BaseException]) -> None:
        """Have the reader get an error, unless something is here for it."""
        if not (self.ended or self._bodies):
            self._error = error
            self._notify()

    def drop(self) -> None:
        """Read no more: the call is cancelled at the other end, if it has not ended."""
        self._bodies.clear()
        self._listener = None
        if not self.ended:
            self.ended = True
            self._link.dropped(self)

    def _notify(self) -> None:
        if self._listener is not None:
            self._listener()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
