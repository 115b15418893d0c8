"""First-come-first-served permits on one event loop: counted slots and bytes in flight.

Owns nothing but the count. A waiter that is cancelled, or a holder that dies, gives back exactly
what it had; nobody polls. Not for use from several loops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class Budget:
    """So many units; `hold(n)` waits for n of them in order of arrival.

    Args:
        size: units there are. A request for more than that takes them all.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def free(self) -> int:
        """Units nobody holds."""
        return self._free

    def hold(self, amount: int = 1) -> _Hold:
        """Hold `amount` units for the length of the block: `async with budget.hold(3):`."""
        return _Hold(self, min(amount, self.size))

    async def acquire(self, amount: int) -> None:
        """Wait for `amount` units and take them; `hold` gives them back in every case."""
        if not self._waiters and self._free >= amount:
            self._free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (amount, turn)
        self._waiters.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(amount)  # granted and cancelled in the same moment
            else:
                with contextlib.suppress(ValueError):  # `_grant` has passed it over already
                    self._waiters.remove(entry)
                self._grant()  # those behind it may fit now
            raise

    def release(self, amount: int) -> None:
        """Give units back."""
        self._free += amount
        self._grant()

    def _grant(self) -> None:
        while self._waiters:
            amount, turn = self._waiters[0]
            if not turn.cancelled():
                if amount > self._free:
                    return
                self._free -= amount
                turn.set_result(None)
            self._waiters.popleft()


class _Hold:
    """Units of a budget for a block; a plain object, as thousands of calls wait in one."""

    __slots__ = ("_amount", "_budget")

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget = budget
        self._amount = amount

    async def __aenter__(self) -> None:
        await self._budget.acquire(self._amount)

    async def __aexit__(self, *_: object) -> None:
        self._budget.release(self._amount)
