"""Telling one peer what is new, at once.

Owns what waits to be told. A peer that is away, slow or busy is told less, never waited for: what a
push left out, the peer asks for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tinkex._timers import Timer, Timers
from tinkex.errors import RateLimitError, TinkerError
from tinkex.mesh.api.feeds import MAX_KEYS, MAX_PUSHED, FeedApi, Key, Push
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.service import batches
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact

_LOG = logging.getLogger("tinkex.mesh.feeds")
_MAX_WAITING_BYTES = 512 << 10
LATER_S = 1.0
"""How long an entry that is not told at once waits for another."""


class Outbox:
    """What one peer is to be told.

    Args:
        contact: the peer.
        peers: calls it.
        tasks: own the calls.
        timers: for a peer that asks for a pause.
        config: limits.
        failed: called when the peer could not be told.
    """

    def __init__(
        self,
        contact: Contact,
        peers: Peers,
        tasks: Tasks,
        timers: Timers,
        config: ReplicationConfig,
        *,
        failed: Callable[[], None],
    ) -> None:
        self.contact = contact
        self._peers = peers
        self._tasks = tasks
        self._timers = timers
        self._config = config
        self._failed = failed
        self._entries: list[bytes] = []
        self._size = 0
        self._forks: list[bytes] = []
        self._keys: list[Key] = []
        self._ask = False
        self._busy = False
        self._telling: asyncio.Task[None] | None = None
        self._later: Timer | None = None
        self._later_s = 0.0
        """How long `_later` waits in all."""

    def add(self, entry: Entry, *, within_s: float = 0.0) -> None:
        """Tell of an entry with what is told next, after so many seconds at most."""
        encoded = entry.encoded()
        if self._size + len(encoded) > _MAX_WAITING_BYTES:
            self._drop()
            self._ask = True
        elif not self._ask:
            self._entries.append(encoded)
            self._size += len(encoded)
        if within_s <= 0:
            self._begin()
        elif self._later is None or within_s < self._later_s:
            if self._later is not None:
                self._later.cancel()
            self._later, self._later_s = self._timers.call_later(within_s, self._begin), within_s

    def add_key(self, key: Key) -> None:
        """Tell of a person's key; it goes before entries that are added later."""
        self._keys.append(key)
        self._begin()

    def add_fork(self, proof: bytes) -> None:
        """Tell of a proof that an author forked."""
        self._forks.append(proof)
        self._begin()

    def ask(self) -> None:
        """Have the peer ask for what it lacks."""
        self._ask = True
        self._begin()

    def part(self) -> asyncio.Task[None] | None:
        """Tell now what waits for others; returns what does, None where nothing waits so."""
        if self._later is None:
            return None
        self._begin()
        return self._telling

    def _begin(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if not self._busy:
            self._busy = True
            name = f"tell {self.contact.peer_id.short}"
            self._telling = self._tasks.spawn(self._tell(), name=name)

    async def _tell(self) -> None:
        try:
            while self._entries or self._keys or self._forks or self._ask:
                await self._push(self._next())
        except RateLimitError as error:
            self._drop()
            self._ask = True
            self._timers.call_later(max(error.retry_after_ms or 0, 1000) / 1000, self._resume)
            return
        except TinkerError as error:
            # It asks when it is there again; what waited is nothing that it could not ask for.
            self._drop()
            _LOG.debug("%s was not told: %s", self.contact.peer_id.short, type(error).__name__)
            self._failed()
        self._busy = False

    def _resume(self) -> None:
        self._busy = False
        self._begin()

    async def _push(self, push: Push) -> None:
        await self._peers.call(
            self.contact, FeedApi.rpc_push, push, timeout_s=self._config.call_timeout_s
        )

    def _next(self) -> Push:
        batch: tuple[bytes, ...] = ()
        if self._entries and len(self._keys) <= MAX_KEYS:
            batch = batches(self._entries[:MAX_PUSHED], self._config.batch_bytes)[0]
            self._entries = self._entries[len(batch) :]
            self._size -= sum(map(len, batch))
        forks, self._forks = tuple(self._forks[:16]), self._forks[16:]
        # With them, or before: who holds an entry can read it.
        keys, self._keys = tuple(self._keys[:MAX_KEYS]), self._keys[MAX_KEYS:]
        last = not self._entries
        push = Push(batch, forks, keys, ask=self._ask and last)
        self._ask = self._ask and not last
        return push

    def _drop(self) -> None:
        self._entries, self._keys, self._forks = [], [], []
        self._size, self._ask = 0, False
