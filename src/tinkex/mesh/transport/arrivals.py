"""Links that others made and nobody has accepted yet.

Owns the waiting on both sides. Knows no transport.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from tinkex.errors import LinkClosedError
from tinkex.mesh.transport.base import Link

L = TypeVar("L", bound=Link)

BACKLOG = 256
"""Links that may wait; more are turned away."""


class Arrivals(Generic[L]):
    """What `Transport.accept` takes from."""

    def __init__(self) -> None:
        self._links: deque[L] = deque()
        self._acceptors: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def add(self, link: L) -> bool:
        """Add a link; False if there is no room, or nobody accepts any more."""
        if self._closed or len(self._links) >= BACKLOG:
            return False
        self._links.append(link)
        self._wake()
        return True

    async def next(self) -> L:
        """Wait for a link that is still open.

        Raises:
            LinkClosedError: nothing arrives any more.
        """
        while True:
            if self._closed:
                raise LinkClosedError("the transport was stopped")
            while self._links:
                link = self._links.popleft()
                if not link.closed:
                    return link
            acceptor: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._acceptors.append(acceptor)
            try:
                await acceptor
            except asyncio.CancelledError:
                # Whoever is cancelled after it was woken leaves the link to the next one.
                if acceptor.done() and not acceptor.cancelled() and self._links:
                    self._wake()
                raise

    def close(self) -> None:
        """Let nothing arrive any more; what waits gets a LinkClosedError. Harmless twice."""
        self._closed = True
        self._links.clear()
        while self._acceptors:
            self._wake()

    def _wake(self) -> None:
        while self._acceptors:
            acceptor = self._acceptors.popleft()
            if not acceptor.done():
                acceptor.set_result(None)
                return
