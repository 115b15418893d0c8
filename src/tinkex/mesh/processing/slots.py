"""Who may run now: so many completions at once, a bounded queue, accounts in turn.

Owns the counting. What runs in a slot is the caller's business.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tinkex._clock import Clock
from tinkex.errors import RateLimitError
from tinkex.mesh.deadline import within

RETRY_AFTER_MS = 1000.0


@dataclass(slots=True, eq=False)
class _Waiting:
    size: int
    granted: asyncio.Event = field(default_factory=asyncio.Event)
    has_it: bool = False


class Slots:
    """Slots for completions. Lives on one event loop.

    Args:
        total: completions at once; a request of more runs alone.
        most_waiting: requests that may wait.
        longest_wait_s: how long each of them may, in seconds.
        clock: tells the time.
    """

    def __init__(
        self, total: int, most_waiting: int, *, longest_wait_s: float, clock: Clock
    ) -> None:
        self._total = total
        self._most_waiting = most_waiting
        self.longest_wait_s = longest_wait_s
        """How long anything that must come before a request's beginning is waited for, in seconds:
        gateways hear nothing meanwhile."""
        self._clock = clock
        self._taken = 0
        self._requests = 0
        self._queues: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        """Accounts with requests that wait; whose turn it is comes first."""
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def total(self) -> int:
        """Completions at once."""
        return self._total

    @property
    def free(self) -> int:
        """Completions that would run at once if they came now."""
        return 0 if self._queues else max(0, self._total - self._taken)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(len(queue) for queue in self._queues.values())

    @asynccontextmanager
    async def take(self, account: str, size: int, *, waited_s: float = 0.0) -> AsyncIterator[None]:
        """Wait for `size` slots, and have them within the block.

        Args:
            account: whose turn it takes.
            size: how many.
            waited_s: how long the request has waited for something else already.

        Raises:
            RateLimitError: the queue is full, or the wait too long.
        """
        if not self._queues and self._fits(size):
            self._hold(size)
        else:
            await self._wait(account, size, self.longest_wait_s - waited_s)
        try:
            yield
        finally:
            self._taken -= size
            self._requests -= 1
            self._grant()

    async def wait_idle(self) -> None:
        """Wait until nothing runs and nothing waits."""
        await self._idle.wait()

    def _fits(self, size: int) -> bool:
        return self._taken == 0 or self._taken + size <= self._total

    def _hold(self, size: int) -> None:
        self._taken += size
        self._requests += 1
        self._idle.clear()

    async def _wait(self, account: str, size: int, longest_s: float) -> None:
        if self.waiting >= self._most_waiting:
            raise RateLimitError(
                f"This processor is full, and {self._most_waiting} requests wait already.",
                retry_after_ms=RETRY_AFTER_MS,
            )
        mine = _Waiting(size)
        self._queues.setdefault(account, deque()).append(mine)
        self._idle.clear()
        try:
            await within(self._clock, max(0.0, longest_s), mine.granted.wait())
        except BaseException as error:
            if mine.has_it:
                self._taken -= size
                self._requests -= 1
            else:
                self._leave(account, mine)
            self._grant()
            if isinstance(error, TimeoutError):
                raise RateLimitError(
                    f"This processor is full: nothing was free for {max(0.0, longest_s):.0f} s.",
                    retry_after_ms=RETRY_AFTER_MS,
                ) from None
            raise

    def _leave(self, account: str, one: _Waiting) -> None:
        queue = self._queues[account]
        queue.remove(one)
        if not queue:
            del self._queues[account]

    def _grant(self) -> None:
        """Let in who comes next, as long as there is room; then it is the next account's turn."""
        while self._queues:
            account, queue = next(iter(self._queues.items()))
            if not self._fits(queue[0].size):
                return
            one = queue[0]
            self._leave(account, one)
            if account in self._queues:
                self._queues.move_to_end(account)
            self._hold(one.size)
            one.has_it = True
            one.granted.set()
        if not self._requests:
            self._idle.set()
