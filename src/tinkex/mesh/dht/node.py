"""A node of the DHT: announces, looks up, and holds its share for others.

Owns the node's life: joining, what it does from time to time, stopping. It is the `Discovery` of
the workers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random, SystemRandom

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import InputError, LinkClosedError, TinkerError, TrustError
from tinkex.mesh.dht.announcer import Announcer
from tinkex.mesh.dht.api import SERVING, DhtApi, HandOver
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.keys import Node, node_id
from tinkex.mesh.dht.records import MAX_TOPIC_CHARACTERS, Offer, Record, RecordChecker, merged
from tinkex.mesh.dht.routing import RoutingTable
from tinkex.mesh.dht.search import Searches
from tinkex.mesh.dht.service import AUTH_TOPIC, DhtService
from tinkex.mesh.dht.storage import RecordStorage
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.certificates import check_certificate

_LOG = logging.getLogger("tinkex.mesh.dht")
_REJOIN_S = 2.0
"""Until the next try, while a node knows nobody."""
_MOST_REMEMBERED = 1024
NEIGHBOURS = 4
"""So many of the nearest are asked for what this node should hold."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    records: tuple[Record, ...]
    until: float


class DhtNode:
    """One node. Lives on the event loop that it is started on; its `peers` are started before it.

    Args:
        peers: calls others, and says who this node is.
        config: numbers.
        rng: of jitter, of witnesses, and of what is looked up to refresh buckets.

    Attributes:
        counts: of what it did and refused, for metrics; no topic and no peer is named.
    """

    def __init__(
        self,
        peers: Peers,
        *,
        clock: Clock,
        config: DhtConfig | None = None,
        rng: Random | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._peers = peers
        self._clock = clock
        self._config = config or DhtConfig()
        # Who could foresee it would know which nodes a lookup asks besides the nearest.
        self._rng = rng or SystemRandom()
        self._table = RoutingTable(node_id(peers.peer_id), k=self._config.k)
        self._storage = RecordStorage(self._table, config=self._config)
        self._tasks = Tasks(on_error=_report)
        self._timers = Timers(clock, on_error=_report)
        self._checker = RecordChecker(
            network=peers.credentials.network,
            roots=lambda: peers.credentials.roots,
            is_revoked=self._is_revoked,
        )
        self._service = self._make_service()
        self._searches = self._make_searches()
        self._announcer = self._make_announcer()
        self._bootstrap: tuple[Node, ...] = ()
        self._serves = False
        self._running = False
        self._served = False
        self._remembered: dict[str, _Remembered] = {}
        self._looking: dict[str, asyncio.Task[tuple[Record, ...]]] = {}
        self._stop_listening = _nothing

    def _make_service(self) -> DhtService:
        return DhtService(
            self._table,
            self._storage,
            self._checker,
            clock=self._clock,
            k=self._config.k,
            met=self._meet,
            auths=lambda: self.lookup(AUTH_TOPIC),
            counts=self.counts,
        )

    def _make_searches(self) -> Searches:
        return Searches(
            self._peers,
            self._checker,
            clock=self._clock,
            timers=self._timers,
            config=self._config,
            rng=self._rng,
            own=self._table.own,
            start=self._nearest,
            met=self._meet,
            lost=self._lose,
            addresses=self._addresses,
            tasks=self._tasks,
            counts=self.counts,
        )

    def _make_announcer(self) -> Announcer:
        return Announcer(
            self._peers,
            clock=self._clock,
            config=self._config,
            rng=self._rng,
            find_nodes=self._searches.find_nodes,
            keep=self._keep,
            sender=self._addresses,
            gone=self._is_gone,
            counts=self.counts,
        )

    # --- life -----------------------------------------------------------------

    async def start(self, bootstrap: Sequence[Contact] = ()) -> None:
        """Join the network by peers that are known already; the first node of all has none.

        Peers that do not answer are tried again for as long as nobody is known, so that workers may
        start in any order: see `known`.

        Raises:
            TrustError: this peer is a guest, or its role certificate does not hold.
            LinkClosedError: it was stopped meanwhile.
            RuntimeError: the node runs already.
        """
        if self._running:
            raise RuntimeError("this node of the DHT is started already")
        self._serves = self._own_role_serves()
        self._running = True
        if self._serves and not self._served:
            self._peers.serve(self._service)
            self._served = True
        self._bootstrap = tuple(
            Node(contact) for contact in bootstrap if contact.peer_id != self._peers.peer_id
        )
        self._timers.start()
        self._searches.open()
        self._stop_listening = self._peers.on_lost(self._lost_link)
        try:
            await self._join()
        except BaseException:
            await self.stop()
            raise
        self._tasks.spawn(self._refresh_far(), name="be known all over the DHT")
        self._tasks.keep(self._maintain, name="maintain the DHT", clock=self._clock)
        self._tasks.keep(self._renew, name="renew announcements", clock=self._clock)

    async def stop(self) -> None:
        """Withdraw what is announced, and end. Harmless twice, and before `start`."""
        if not self._running:
            return
        self._running = False
        try:
            await self._announcer.withdraw(*self._announcer.topics)
        finally:
            self._stop_listening()
            self._searches.close()
            await self._tasks.stop()
            await asyncio.gather(*self._looking.values(), return_exceptions=True)
            await self._timers.stop()

    @property
    def known(self) -> int:
        """How many nodes are known that answered: 0 is alone."""
        return len(self._table)

    @property
    def holding(self) -> int:
        """How many records are held for others."""
        return len(self._storage)

    @property
    def contacts(self) -> tuple[Contact, ...]:
        """The nodes that are known."""
        return tuple(node.contact for node in self._table)

    # --- Discovery ------------------------------------------------------------

    async def announce(self, topic: str, offer: Offer) -> None:
        """Make it known that this worker serves `topic`; see `workers.discovery.Discovery`.

        Raises:
            TrustError: this worker's role may not announce the topic.
            InputError: the topic or the offer is too long.
            LinkClosedError: the node does not run, or was stopped.
        """
        self._check_runs()
        await self._announcer.announce(topic, offer)

    async def withdraw(self, topic: str) -> None:
        """Take an announcement back. Harmless if there is none."""
        await self._announcer.withdraw(topic)

    async def lookup(self, topic: str) -> tuple[Record, ...]:
        """Find who announces `topic`; see `workers.discovery.Discovery`.

        Raises:
            InputError: the topic is none that could be announced.
            LinkClosedError: the node does not run, or was stopped.
        """
        self._check_runs()
        if not 1 <= len(topic) <= MAX_TOPIC_CHARACTERS:
            raise InputError(f"a topic has 1 to {MAX_TOPIC_CHARACTERS} characters")
        remembered = self._remembered.get(topic)
        if remembered is not None and self._clock.monotonic() < remembered.until:
            return remembered.records
        # Those who ask at the same time share one lookup; one that gives up stops none of the rest.
        running = self._looking.get(topic)
        if running is None:
            running = asyncio.create_task(self._look_up(topic), name="look a topic up")
            self._looking[topic] = running
            running.add_done_callback(lambda done: self._looked_up(topic, done))
        return await asyncio.shield(running)

    def _looked_up(self, topic: str, done: asyncio.Task[tuple[Record, ...]]) -> None:
        self._looking.pop(topic, None)
        if not done.cancelled():
            done.exception()  # it may be that nobody waits any more

    def _check_runs(self) -> None:
        if not self._running:
            raise LinkClosedError("this node of the DHT does not run: start it first")

    async def _look_up(self, topic: str) -> tuple[Record, ...]:
        found: list[Record] = []
        for _ in range(2):
            found += self._service.held(topic)
            found += await self._searches.find_records(topic)
            if found:
                break
        records = merged(found)
        self.counts["lookups" if records else "empty_lookups"] += 1
        self._remember(topic, records)
        return records

    def _remember(self, topic: str, records: tuple[Record, ...]) -> None:
        now = self._clock.monotonic()
        seconds = self._config.cache_s if records else self._config.empty_cache_s
        if len(self._remembered) >= _MOST_REMEMBERED:
            kept = {name: one for name, one in self._remembered.items() if now < one.until}
            self._remembered = kept if len(kept) < _MOST_REMEMBERED else {}
        self._remembered[topic] = _Remembered(records, now + seconds)

    # --- who is known ---------------------------------------------------------

    def _own_role_serves(self) -> bool:
        own = self._peers.credentials
        if own.certificate is None:
            raise TrustError("a guest has no place in the DHT: join with an invitation first")
        certificate = check_certificate(
            own.certificate, network=own.network, roots=own.roots, now=self._clock.now()
        )
        return certificate.role in SERVING

    def _is_revoked(self, peer: PeerId) -> bool:
        # The credentials may be others by then: see `Peers.renew`.
        return self._peers.credentials.is_revoked(peer)

    def _addresses(self) -> tuple[str, ...]:
        """What others are told, so that they take this node in; nothing, if it only asks."""
        return self._peers.contact.addresses if self._serves else ()

    def _nearest(self, target: int) -> list[Node]:
        """Where a lookup begins; who knows nobody any more tries those it knew, and the first."""
        self._table.looked_up(target, self._clock.monotonic())
        found = self._table.closest(target, self._config.k)
        return found or [*self._table.lost(8, self._clock.monotonic()), *self._bootstrap]

    def _meet(self, node: Node) -> None:
        challenged = self._table.seen(node, self._clock.monotonic())
        if challenged is not None and self._running:
            self._tasks.spawn(self._ping(challenged), name="ask for a sign of life")

    def _lose(self, node: Node) -> None:
        self._table.failed(node.id, self._clock.monotonic())

    def _lost_link(self, peer: PeerId) -> None:
        self._table.failed(node_id(peer), self._clock.monotonic())

    def _is_gone(self, node: Node) -> bool:
        return self._table.is_lost(node.id) and not self._peers.has_link(node.contact.peer_id)

    def _keep(self, encoded: bytes) -> None:
        if self._serves:
            self._service.put(encoded, sender=self._peers.peer_id)

    async def _ping(self, node: Node) -> None:
        try:
            await self._peers.ping(node.contact, timeout_s=self._config.request_timeout_s)
        except TinkerError:
            self._lose(node)
        else:
            self._table.seen(node, self._clock.monotonic())

    # --- from time to time ----------------------------------------------------

    async def _join(self) -> None:
        near = await self._searches.find_nodes(self._table.own, self._bootstrap)
        if self._serves:
            await asyncio.gather(*(self._take_over(node) for node in near[:NEIGHBOURS]))
            self._service.complete = True
        self._announcer.forget_holders()

    async def _take_over(self, neighbour: Node) -> None:
        try:
            reply = await self._peers.call(
                neighbour.contact,
                DhtApi.rpc_hand_over,
                HandOver(self._addresses()),
                timeout_s=self._config.request_timeout_s,
            )
        except TinkerError:
            self._lose(neighbour)
            return
        for held in reply.records:
            self._service.take_over(held)

    async def _refresh_far(self) -> None:
        for target in self._table.far_targets(self._rng):
            await self._searches.find_nodes(target)

    async def _maintain(self) -> None:
        due = self._config.probe_s
        while True:
            alone = len(self._table) == 0
            await self._clock.sleep(_REJOIN_S if alone else due * (1 - 0.1 * self._rng.random()))
            if len(self._table) == 0:
                await self._join()
                continue
            await self._probe()
            now = self._clock.monotonic()
            for target in self._table.stale_targets(
                now, idle_s=self._config.refresh_s, rng=self._rng
            ):
                await self._searches.find_nodes(target)

    async def _probe(self) -> None:
        """Try nodes that were lost; with the first that is back, the network has healed: join anew.

        A node that knows few tries more at once: half of a small network may have been cut off.
        """
        count = 1 if len(self._table) >= 2 * self._config.k else 4
        away = [node for node in self._bootstrap if node.id not in self._table]
        tried = {node.id: node for node in self._table.lost(count, self._clock.monotonic())}
        if away:
            first = self._rng.choice(away)
            tried[first.id] = first
        await asyncio.gather(*(self._ping(node) for node in tried.values()))
        if any(node in self._table for node in tried):
            await self._join()

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(await self._announcer.renew())


def _nothing() -> None:
    """Nobody was listened to."""


def _report(error: BaseException) -> None:
    # The text of an exception may quote what a peer sent.
    _LOG.error("background work of the DHT failed: %s", type(error).__name__)
