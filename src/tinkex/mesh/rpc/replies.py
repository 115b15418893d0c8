"""The replies of a stream that a peer was asked for, as its one reader takes them.

Owns the reader's patience with the whole and with each reply. `Peers.ask` makes one; most readers
want `Peers.stream`, which is an iterator around it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.mesh.rpc.calls import OutgoingCall
from tinkex.mesh.rpc.deadline import Deadline, Patience

R = TypeVar("R")


class Replies(Generic[R]):
    """What comes of a call.

    Args:
        call: was sent; None while there is no link that takes it.
        opening: sends it, once there is such a link.
        decode: reads one reply.
        deadline: monotonic seconds of the end of all patience.
        each_s: patience with each reply, in seconds.
        late: makes the error that the reader gets where that is not enough.
        timers: of the event loop.
        clock: tells the time.
    """

    def __init__(
        self,
        call: OutgoingCall | None,
        opening: Callable[[], Awaitable[OutgoingCall]],
        decode: Callable[[bytes], R],
        *,
        deadline: float,
        each_s: float,
        late: Callable[[], Exception],
        timers: Timers,
        clock: Clock,
    ) -> None:
        self._call = call
        self._opening = opening
        self._decode = decode
        self._deadline = deadline
        self._each_s = each_s
        self._late = late
        self._timers = timers
        self._clock = clock
        self._patience = Patience(timers, clock, self._give_up)
        self._waits = False
        """Whether the reader does: a reply that it does not want yet is not late."""
        self._listened = False

    @property
    def sent(self) -> bool:
        """Whether the request has left; if not, `open` sends it."""
        return self._call is not None

    async def open(self) -> OutgoingCall:
        """Send the request, once there is a link that takes it.

        Raises:
            TinkerError: there will be none.
        """
        async with Deadline(self._timers, self._each_s, self._late):
            self._call = await self._opening()
        return self._call

    def listen(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when there may be something to `take`; for what was sent."""
        assert self._call is not None, "it was sent"
        self._listened = True
        self._be_patient()
        self._call.listen(callback)
        if self._call.ended or self._call.waiting:
            asyncio.get_running_loop().call_soon(callback)  # it came before

    def take(self) -> R | None:
        """Take the next reply if it is here; for what was sent.

        Raises:
            TinkerError: the call failed; after all that came before.
        """
        assert self._call is not None, "it was sent"
        body = self._call.take()
        if body is not None:
            self._waits = False
            return self._decode(body)
        self._call.check()
        if self._listened and not self._call.ended:
            self._be_patient()
        return None

    @property
    def ended(self) -> bool:
        """Whether nothing is here, nor will be."""
        return self._call is not None and self._call.over

    async def next(self) -> R | None:
        """Wait for the next reply; None at the end.

        Raises:
            TinkerError: the call failed; after all that came before.
        """
        call = self._call or await self.open()
        body = call.take()
        if body is None:
            self._be_patient()
            body = await call.next()
        self._waits = False
        return None if body is None else self._decode(body)

    def close(self) -> None:
        """Read no more: the call is cancelled at the other end, if it has not ended. Harmless."""
        self._patience.end()
        if self._call is not None:
            self._call.drop()

    def _be_patient(self) -> None:
        self._waits = True
        self._patience.until(min(self._deadline, self._clock.monotonic() + self._each_s))

    def _give_up(self) -> None:
        if self._waits and self._call is not None:
            self._call.give_up(self._late)
