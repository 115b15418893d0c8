"""Adapters that nobody used for long leave memory, so that thousands live on one base model.

Owns when the engines are asked to move them to the disk: a few at a time, in a turn of their own,
so that nobody waits for longer than for those. What needs room now moves others out by itself
(`engine/adapters/pool.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.errors import TinkerError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tinkex._timers import Timers
    from tinkex.server.models.bases import Bases, HostedBase

LOOKS_IN_TIME = 4
"""How often one looks in the time after which something is idle."""
AT_ONCE = 8
"""Adapters that are moved in one turn of the engine."""
LANE = "idle adapters"


class IdleAdapters:
    """The watch over every engine of a server.

    Args:
        bases: the engines.
        idle_s: seconds without use after which an adapter or sampler is idle.
        timers: says when to look.
        on_fault: told of a failure that is a bug.
    """

    def __init__(
        self,
        bases: Bases,
        *,
        idle_s: float,
        timers: Timers,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._bases = bases
        self._idle_s = idle_s
        self._timers = timers
        self._on_fault = on_fault

    def start(self) -> None:
        """Look now and then, for as long as the timers run."""
        self._timers.call_later(self._idle_s / LOOKS_IN_TIME, self._look)

    def _look(self) -> None:
        for base in self._bases:
            self._move_some(base)
        self.start()

    def _move_some(self, base: HostedBase) -> None:
        outcome = base.jobs.call(LANE, lambda engine: engine.move_idle_out(self._idle_s, AT_ONCE))

        def moved(outcome: asyncio.Future[int]) -> None:
            if outcome.cancelled():
                return
            error = outcome.exception()
            if error is None:
                if outcome.result() == AT_ONCE:
                    self._move_some(base)
            elif not isinstance(error, TinkerError):
                self._on_fault(error)

        outcome.add_done_callback(moved)
