"""What this node announces: putting it, renewing it at a third of its time, taking it back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from tinkex._clock import Clock
from tinkex.errors import InputError, TinkerError, TrustError
from tinkex.mesh.dht.api import MAX_PUT, DhtApi, Store
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.keys import Node, topic_key
from tinkex.mesh.dht.records import (
    MAX_TOPIC_CHARACTERS,
    Offer,
    make_record,
    may_announce,
)
from tinkex.mesh.dht.storage import Verdict
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S, check_certificate

RENEWALS_PER_TTL = 3
_RETRY_S = 3.0
"""Until the next try, when nobody took a record."""
_LEAP_MS = int(2 * CLOCK_SKEW_S * 1000)
"""How far two clocks that are tolerated can be apart: this worker's, before and after a restart."""


@dataclass(slots=True)
class _Announcement:
    topic: str
    offer: Offer
    holders: list[Node] = field(default_factory=list)
    looked_up_at: float = float("-inf")
    taken: int = 0
    """How many nodes took it, the last time."""
    stale: int = 0
    """How many held a later one, the last time."""


class Announcer:
    """The announcements of one node.

    Args:
        find_nodes: gives the living nodes nearest to a key.
        keep: takes a record into the node's own storage, if it is near.
        addresses: where others reach this worker, also one that serves no DHT.
        sender: the same, empty if it serves none.
        gone: whether a node did not answer when it was last asked.
    """

    def __init__(
        self,
        peers: Peers,
        *,
        clock: Clock,
        config: DhtConfig,
        rng: Random,
        find_nodes: Callable[[int], Awaitable[list[Node]]],
        keep: Callable[[bytes], None],
        sender: Callable[[], tuple[str, ...]],
        gone: Callable[[Node], bool],
        counts: Counter[str],
    ) -> None:
        self._peers = peers
        self._clock = clock
        self._config = config
        self._rng = rng
        self._find_nodes = find_nodes
        self._keep = keep
        self._sender = sender
        self._gone = gone
        self._counts = counts
        self._announcements: dict[str, _Announcement] = {}
        self._sequence = 0

    @property
    def topics(self) -> tuple[str, ...]:
        """What is announced."""
        return tuple(self._announcements)

    async def announce(self, topic: str, offer: Offer) -> None:
        """Put a record, and have it renewed from now on; see `workers.discovery.Discovery`.

        Raises:
            TrustError: this worker's role may not.
            InputError: the topic or the offer is too long.
            LinkClosedError: the node does not run, or was stopped.
        """
        known = self._announcements.get(topic)
        if known is None:
            self._check_allowed(topic)
            made = _Announcement(topic, offer)
            self._record(made, withdrawn=False)
            self._announcements[topic] = made
            await self._put([made])
            return
        # Their order goes with the next renewal: it changes with every use of one.
        changed = known.offer.models != offer.models or {*known.offer.adapters} != {*offer.adapters}
        before, known.offer = known.offer, offer
        if changed:
            try:
                self._record(known, withdrawn=False)
            except InputError:
                known.offer = before
                raise
            await self._put([known])

    async def withdraw(self, *topics: str) -> None:
        """Take announcements back."""
        found = [self._announcements.pop(topic, None) for topic in topics]
        gone = [announcement for announcement in found if announcement is not None]
        if gone:
            await self._put(gone, withdrawn=True)

    async def renew(self) -> float:
        """Put everything once more; gives the seconds until that is due again."""
        announcements = list(self._announcements.values())
        await self._put(announcements)
        period = self._config.ttl_s / RENEWALS_PER_TTL
        if any(not announcement.taken for announcement in announcements):
            return min(_RETRY_S, period)
        # Less up to a tenth, so that workers that started together do not renew together.
        return period * (1.0 - 0.1 * self._rng.random())

    def forget_holders(self) -> None:
        """Have the nearest nodes looked up anew at the next renewal: the network has changed."""
        for announcement in self._announcements.values():
            announcement.looked_up_at = float("-inf")

    def _check_allowed(self, topic: str) -> None:
        if len(topic) > MAX_TOPIC_CHARACTERS:
            raise InputError(
                f"a topic has {MAX_TOPIC_CHARACTERS} characters at most: choose a shorter name"
            )
        own = self._peers.credentials
        if own.certificate is None:
            raise TrustError("a guest announces nothing: join the network with an invitation first")
        role = check_certificate(
            own.certificate, network=own.network, roots=own.roots, now=self._clock.now()
        ).role
        if not may_announce(role, topic):
            raise TrustError(f"a {role} may not announce {topic!r}")

    def _record(self, announcement: _Announcement, *, withdrawn: bool) -> bytes:
        own = self._peers.credentials
        # Higher than before a restart, too.
        self._sequence = max(self._sequence + 1, int(self._clock.now() * 1000))
        return make_record(
            own.key_pair,
            topic=announcement.topic,
            offer=Offer() if withdrawn else announcement.offer,
            addresses=self._peers.contact.addresses,
            certificate=own.certificate or b"",
            sequence=self._sequence,
            expires_at=self._clock.now() + self._config.ttl_s,
            ttl_s=self._config.ttl_s,
            withdrawn=withdrawn,
        )

    async def _put(self, announcements: list[_Announcement], *, withdrawn: bool = False) -> None:
        """Put records to the nodes nearest to each; above the numbers of an earlier life."""
        if not withdrawn:
            await self._notice_newcomers(announcements)
            await self._look_up([a for a in announcements if self._is_due(a)])
            # What was withdrawn meanwhile must not come back with a higher number.
            announcements = [a for a in announcements if self._announcements.get(a.topic) is a]
        await self._put_to_holders(announcements, withdrawn=withdrawn)
        behind = [a for a in announcements if a.stale > a.taken]
        if behind:
            # The clock was set back since. No number is taken on anybody's word, or one liar could
            # name the last one there is.
            self._sequence += _LEAP_MS
            await self._put_to_holders(behind, withdrawn=withdrawn)
        for announcement in announcements:
            if announcement.taken * 4 < len(announcement.holders) * 3:
                announcement.looked_up_at = float("-inf")

    async def _put_to_holders(self, announcements: list[_Announcement], *, withdrawn: bool) -> None:
        """Put new records, one request for all that a node gets."""
        batches: dict[Node, list[tuple[_Announcement, bytes]]] = {}
        for announcement in announcements:
            announcement.taken = announcement.stale = 0
            try:
                encoded = self._record(announcement, withdrawn=withdrawn)
            except InputError:
                # It fitted when it was announced; this worker has more addresses since.
                self._counts["records_too_long"] += 1
                continue
            self._keep(encoded)
            for node in announcement.holders:
                if withdrawn and self._gone(node):
                    continue  # a worker that stops does not wait for who does not answer
                batches.setdefault(node, []).append((announcement, encoded))
        await asyncio.gather(*(self._store(node, batch) for node, batch in batches.items()))

    def _is_due(self, announcement: _Announcement) -> bool:
        age = self._clock.monotonic() - announcement.looked_up_at
        return age >= self._config.holders_s or not announcement.holders

    async def _notice_newcomers(self, announcements: list[_Announcement]) -> None:
        """Look one announcement up; where its holders changed, all are to be looked up.

        Only in a network of fewer nodes than hold a record: there each of them is near everything,
        and a lookup that meets one without the record is soon one that misses it.
        """
        few = (a for a in announcements if 0 < len(a.holders) < self._config.k)
        first = next((a for a in few if not self._is_due(a)), None)
        if first is None:
            return
        before = set(first.holders)
        await self._look_up([first])
        if set(first.holders) != before:
            since = first.looked_up_at
            self.forget_holders()
            first.looked_up_at = since

    async def _look_up(self, announcements: list[_Announcement]) -> None:
        for start in range(0, len(announcements), self._config.alpha):
            some = announcements[start : start + self._config.alpha]
            found = await asyncio.gather(*(self._find_nodes(topic_key(a.topic)) for a in some))
            for announcement, holders in zip(some, found, strict=True):
                announcement.holders = holders
                announcement.looked_up_at = self._clock.monotonic()

    async def _store(self, node: Node, batch: list[tuple[_Announcement, bytes]]) -> None:
        for start in range(0, len(batch), MAX_PUT):
            some = batch[start : start + MAX_PUT]
            self._counts["stores"] += 1
            try:
                reply = await self._peers.call(
                    node.contact,
                    DhtApi.rpc_store,
                    Store(tuple(encoded for _, encoded in some), self._sender()),
                    timeout_s=self._config.request_timeout_s,
                )
            except TinkerError:
                self._counts["stores_failed"] += 1
                return
            for (announcement, _), verdict in zip(some, reply.verdicts, strict=False):
                announcement.taken += verdict == Verdict.STORED
                announcement.stale += verdict == Verdict.STALE
                self._counts[f"store_{verdict.value}"] += 1
