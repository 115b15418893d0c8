"""Sampled tokens on their way from the engine's thread to whoever reads them.

Owns the crossing and the brake: while more wait than are being read, the sample is held, so a slow
reader costs a place and a bounded memory, and slows nobody else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinkex.engine.sampling.sequence import SampledToken

UNREAD = 64
"""Tokens of each completion that may wait before the sample is held."""


class TokenFlow:
    """The tokens of one job.

    Args:
        loop: that they are read on.
        samples: completions of the job.
        hold: lets the job wait (true), or go on; called in either thread.
        after_step: has the event loop do something once the engine's step has ended, with whatever
            else it is told then; called in the engine's thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        samples: int,
        hold: Callable[[bool], None],
        after_step: Callable[[Callable[[], None]], None],
    ) -> None:
        self._loop = loop
        self._most = UNREAD * samples
        self._hold = hold
        self._after_step = after_step
        self._unread: deque[SampledToken] = deque()
        self._woken = False
        self._held = False
        self.came = asyncio.Event()
        """Set when there is something to take."""

    def __len__(self) -> int:
        return len(self._unread)

    def push(self, token: SampledToken) -> None:
        """Add a token; called in the engine's thread."""
        self._unread.append(token)
        if len(self._unread) >= self._most:
            self._hold(True)
            self._held = True  # not before: who sees it lets the job go on after that
        if self._woken:
            return
        self._woken = True
        if token.stop_reason is None:
            self._loop.call_soon_threadsafe(self._wake)
        else:
            # The outcome is a moment away: both at once make one message of the last two.
            self._after_step(self._wake)

    def take(self) -> list[SampledToken]:
        """Return what came since the last call, and let the job go on."""
        self.came.clear()
        found = []
        while self._unread:
            found.append(self._unread.popleft())
        if self._held:
            self._held = False
            self._hold(False)
        return found

    def _wake(self) -> None:
        self._woken = False
        self.came.set()
