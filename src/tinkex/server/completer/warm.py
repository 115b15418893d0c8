"""Weights that stay in the engine for a while after a request without a session.

Owns how long and how many: a conversation comes as one request after the other, and loading its
adapter for each, with what is cached of its prompt, would be most of the work.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinkex._timers import Timer, Timers
    from tinkex.server.sampling.samplers import Snapshot

IDLE_S = 300.0
"""Seconds after the last request."""
MOST = 32
"""Adapters kept; above it the one not used for longest goes."""


class WarmWeights:
    """Uses of weights that nobody else may hold.

    Args:
        timers: ends them.
        idle_s: seconds after the last request.
        most: how many are kept.
    """

    def __init__(self, timers: Timers, *, idle_s: float = IDLE_S, most: int = MOST) -> None:
        self._timers = timers
        self._idle_s = idle_s
        self._most = most
        self._kept: OrderedDict[Snapshot, Timer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, snapshot: Snapshot) -> None:
        """Take over one use of some weights, and let go of it when they have been idle."""
        if snapshot in self._kept:
            self._kept.pop(snapshot).cancel()
            snapshot.release()
        self._kept[snapshot] = self._timers.call_later(self._idle_s, lambda: self._let_go(snapshot))
        while len(self._kept) > self._most:
            self._let_go(next(iter(self._kept)))

    def _let_go(self, snapshot: Snapshot) -> None:
        self._kept.pop(snapshot).cancel()
        snapshot.release()
