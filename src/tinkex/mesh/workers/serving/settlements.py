"""Settlements until they are on the disk: what it refuses is written once it has room.

Owns which leases have one that is not written: such a lease is not closed, so that a gateway that
stops meanwhile finds the reservation under an open lease at its next start, and settles from it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable

from tinkex.errors import StorageError
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.usage import Settled


class Settlements:
    """Those that are under way, and those that are owed. Contains the ids of their leases.

    Args:
        write: writes one; raises StorageError where nothing was written.
        tasks: owns the writing of those that are owed.
    """

    def __init__(self, write: Callable[[Settled], Awaitable[object]], tasks: Tasks) -> None:
        self._write = write
        self._tasks = tasks
        self._of_lease: Counter[str] = Counter()
        self._under_way = 0
        self._none_under_way = asyncio.Event()
        self._none_under_way.set()
        self._owed: deque[Settled] = deque()
        self._paying: asyncio.Task[None] | None = None

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._of_lease

    async def write(self, settled: Settled, is_needed: Callable[[], bool]) -> None:
        """Write one, after those that are owed.

        Args:
            settled: the entry.
            is_needed: whether it is to be written later, if the disk refuses it now.

        Raises:
            StorageError: the disk refuses it.
        """
        self._of_lease[settled.lease_id] += 1
        self._under_way += 1
        self._none_under_way.clear()
        try:
            await self.write_owed()
            await self._write(settled)
        except StorageError:
            if is_needed():
                self._owed.append(settled)
            else:
                self._done(settled)
            raise
        else:
            self._done(settled)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._none_under_way.set()

    async def write_owed(self) -> None:
        """Write those that the disk refused, in order; of all who ask at once, one does.

        Raises:
            StorageError: it still does.
        """
        if not self._owed:
            return
        if self._paying is None or self._paying.done():
            self._paying = self._tasks.spawn(self._pay(), name="write what the disk refused")
        # Who asks may be called off; then it would not be known whether one was written.
        await asyncio.shield(self._paying)

    async def none_under_way(self) -> None:
        """Wait until each is written or owed."""
        await self._none_under_way.wait()

    async def _pay(self) -> None:
        while self._owed:
            await self._write(self._owed[0])
            self._done(self._owed.popleft())

    def _done(self, settled: Settled) -> None:
        self._of_lease[settled.lease_id] -= 1
        if not self._of_lease[settled.lease_id]:
            del self._of_lease[settled.lease_id]
