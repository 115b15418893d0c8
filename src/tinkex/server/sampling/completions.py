"""What has been done for one client of a sampling session, in the order in which it was done.

Owns the numbering: a client that knows the events up to a cursor asks for those after it, and is
woken by the next one. Knows nothing of what a result is.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tinkex.server.futures import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tinkex._timers import Timers
    from tinkex.server.futures import Future


class CompletionLog:
    """The completions of one client.

    Args:
        kept: whether a result is kept still; those that are not need not be told of.
        first: number before that of the first completion.
    """

    def __init__(self, kept: Callable[[str], Future | None], first: int = 0) -> None:
        self._kept = kept
        self._events: deque[tuple[int, Future]] = deque()
        self._waiters: set[Waiter] = set()
        self.cursor = first
        """Number of the last completion."""

    def note(self, future: Future) -> None:
        """Note that a future is done."""
        while self._events and self._kept(self._events[0][1].request_id) is None:
            self._events.popleft()
        self.cursor += 1
        self._events.append((self.cursor, future))
        self.wake()

    def since(self, cursor: int) -> list[Future]:
        """Return the completions after a cursor; those up to it are forgotten."""
        while self._events and self._events[0][0] <= cursor:
            self._events.popleft()
        return [future for _, future in self._events]

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
