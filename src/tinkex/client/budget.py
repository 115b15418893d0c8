"""First-come-first-served permits on one event loop: counted slots and bytes in flight.

Owns nothing but the count. A waiter that is cancelled, or a holder that dies, gives back exactly
what it had; nobody polls. Not for use from several loops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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

    @contextlib.asynccontextmanager
    async def hold(self, amount: int = 1) -> AsyncIterator[None]:
        """Hold `amount` units for the length of the block."""
        amount = min(amount, self.size)
        await self._acquire(amount)
        try:
            yield
        finally:
            self._release(amount)

    async def _acquire(self, amount: int) -> None:
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
                self._release(amount)  # granted and cancelled in the same moment
            else:
                with contextlib.suppress(ValueError):  # `_grant` has passed it over already
                    self._waiters.remove(entry)
                self._grant()  # those behind it may fit now
            raise

    def _release(self, amount: int) -> None:
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
