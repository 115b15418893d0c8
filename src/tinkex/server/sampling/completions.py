"""What has been done for one client of a sampling session, in the order in which it was done.

Owns the numbering: a client that knows the events up to a cursor asks for those after it, and is
woken by the next one. Knows nothing of what a result is.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.server.futures import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tinkex._timers import Timers
    from tinkex.server.futures import Future


MOST_EVENTS = 10_000
"""Completions that a client which never asks for them leaves behind, at most."""


@dataclass(frozen=True, slots=True)
class Completed:
    """One completion; not its future, whose result may be let go before its client asks."""

    number: int
    request_id: str
    failed: bool
    result_bytes: int
    """Estimated size of the result, in bytes."""


class CompletionLog:
    """The completions of one client.

    A result that was dropped before its client heard of it is told of too: the client then asks for
    it and hears that it was dropped, where it would wait for ever.

    Args:
        kept: the future with an id, if its result is kept still; those that were delivered need not
            be told of.
        first: number before that of the first completion.
    """

    def __init__(self, kept: Callable[[str], Future | None], first: int = 0) -> None:
        self._kept = kept
        self._events: deque[Completed] = deque()
        self._waiters: set[Waiter] = set()
        self.cursor = first
        """Number of the last completion."""

    def note(self, future: Future) -> None:
        """Note that a future is done."""
        while self._events and self._is_delivered(self._events[0]):
            self._events.popleft()
        if len(self._events) >= MOST_EVENTS:
            self._events.popleft()
        self.cursor += 1
        failed = future.error is not None
        event = Completed(self.cursor, future.request_id, failed, future.result_bytes)
        self._events.append(event)
        self.wake()

    def since(self, cursor: int) -> list[Completed]:
        """Return the completions after a cursor; those up to it are forgotten."""
        while self._events and self._events[0].number <= cursor:
            self._events.popleft()
        return list(self._events)

    def _is_delivered(self, event: Completed) -> bool:
        future = self._kept(event.request_id)
        return future is not None and future.delivered

    def wake(self) -> None:
        """Wake everybody who waits."""
        for waiter in self._waiters:
            waiter.wake()

    @contextmanager
    def waiter(self, timers: Timers, seconds: float) -> Iterator[Waiter]:
        """Give something to await that ends with the next completion, or in `seconds`."""
        waiter = Waiter()
        self._waiters.add(waiter)
        timer = timers.call_later(seconds, waiter.wake)
        try:
            yield waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)
