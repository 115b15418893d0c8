"""What a worker has heard of the auth workers: how long ago, and asking them now.

Owns how many are enough: most of the members that the root named. A single one may itself be cut
off from those that decide.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection

from tinkex.mesh.feeds.replication import Replicator
from tinkex.mesh.feeds.terms import majority
from tinkex.mesh.identity import PeerId


class AuthNews:
    """Asks auth workers for their logs; a `serving.freshness.News`.

    Args:
        replicator: follows them.
        members: the auth workers that the root named.
        find: looks for more of them.
    """

    def __init__(
        self,
        replicator: Replicator,
        members: Callable[[], Collection[bytes]],
        find: Callable[[], Awaitable[None]],
    ) -> None:
        self._replicator = replicator
        self._members = members
        self._find = find

    def age_s(self) -> float:
        """Seconds since most auth workers gave all that they had; infinity: never yet."""
        members = self._members()
        ages = sorted(
            state.age_s
            for state in self._replicator.sources()
            if state.age_s is not None and state.peer_id.raw in members
        )
        needed = majority(members)
        return ages[needed - 1] if len(ages) >= needed else math.inf

    async def ask(self, timeout_s: float) -> bool:
        """Ask them now; whether most gave all that they have."""
        if await self._replicator.ask(timeout_s, until=self._enough):
            return True
        await self._find()
        return await self._replicator.ask(timeout_s, until=self._enough)

    def _enough(self, answered: Collection[PeerId]) -> bool:
        members = self._members()
        return len([peer for peer in answered if peer.raw in members]) >= majority(members)
