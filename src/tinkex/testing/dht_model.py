"""A DHT of thousands of nodes in virtual time: the mesh's own tables, lookups and storage.

Owns the events: messages with a delay, nodes that come and go, announcements and their renewal.
Left out are bytes and signatures: a record here is one that was checked already. A seed gives the
same run again.
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING, cast

from tinkex.mesh.dht.announcer import RENEWALS_PER_TTL
from tinkex.mesh.dht.api import MAX_RECORDS
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.keys import Node, topic_key
from tinkex.mesh.dht.lookup import Lookup
from tinkex.mesh.dht.node import NEIGHBOURS
from tinkex.mesh.dht.records import Record, merged
from tinkex.mesh.dht.routing import RoutingTable
from tinkex.mesh.dht.storage import RecordStorage
from tinkex.mesh.identity import PeerId
from tinkex.mesh.transport.base import Contact

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex.mesh.trust.certificates import RoleCertificate

_UNSIGNED = cast("RoleCertificate", None)
_DATE = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class Delays:
    """How long an answer takes: log-normal, as over the internet."""

    median_s: float = 0.04
    sigma: float = 0.5

    def draw(self, rng: Random) -> float:
        """Seconds from a request to its answer."""
        return self.median_s * math.exp(rng.gauss(0.0, self.sigma))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run: some nodes announce topics, and lookups come from everywhere.

    A lookup is for one of a topic's publishers: it has failed when it finds the others alone.
    """

    nodes: int
    seed: int
    topics: int = 100
    publishers: int = 3
    """Of each topic."""
    churn: float = 0.3
    """The share of nodes that vanishes in an hour, publishers among them; each is replaced."""
    lookups_per_s: int = 10
    seconds: float = 600.0
    warm_up_s: float = 60.0

    def play(self) -> Figures:
        """Run it, and give what was measured after the warm-up."""
        model = DhtModel(self.nodes, seed=self.seed, churn=self.churn)
        rng = Random(self.seed)  # noqa: S311 - a simulation
        topics = [f"model:{number}" for number in range(self.topics)]
        publishers = [(topic, model.announce(topic)) for topic in topics * self.publishers]
        model.run(self.warm_up_s)
        model.figures = Figures(node_seconds=self.nodes * self.seconds)
        for _ in range(round(self.seconds)):
            for number, (topic, state) in enumerate(publishers):
                if not state.alive:
                    publishers[number] = (topic, model.announce(topic))
            put = [one for one in publishers if one[1].topics[one[0]] > 1]
            for topic, state in rng.choices(put, k=self.lookups_per_s):
                model.measure(topic, state)
            model.run(1.0)
        model.run(10.0)
        return model.figures


@dataclass(slots=True)
class Figures:
    """What was measured."""

    lookups: int = 0
    found: int = 0
    retried: int = 0
    seconds: list[float] = field(default_factory=list)
    hops: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    messages: Counter[str] = field(default_factory=Counter)
    """Requests by kind; each has an answer, unless its node is dead."""
    node_seconds: float = 0.0
    """Nodes times seconds, that messages are spread over."""
    missed: list[str] = field(default_factory=list)
    """Topics that were announced, and not found."""

    def percentile(self, share: float) -> float:
        """Of the lookups' times, in seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]

    @property
    def requests_per_node(self) -> float:
        """Requests that a node sends in a second."""
        return self.messages.total() / self.node_seconds

    @property
    def mean_hops(self) -> float:
        """Nodes asked one after the other until the first value."""
        return statistics.fmean(self.hops)


class ModelNode:
    """One node: what it knows and holds."""

    __slots__ = (
        "alive",
        "complete",
        "holders",
        "looked_up_at",
        "node",
        "storage",
        "table",
        "topics",
    )

    def __init__(self, node: Node, config: DhtConfig) -> None:
        self.node = node
        self.table = RoutingTable(node.id, k=config.k)
        self.storage: RecordStorage | None = None
        self.alive = True
        self.complete = True
        self.topics: dict[str, int] = {}
        self.holders: dict[str, list[Node]] = {}
        self.looked_up_at: dict[str, float] = {}


class DhtModel:
    """The network and its events.

    Args:
        nodes: how many, at the start and, as those who leave are replaced, on average.
        seed: of everything that is random.
        churn: the share of nodes that leaves in an hour, without a word, and is replaced.
    """

    def __init__(
        self,
        nodes: int,
        *,
        seed: int,
        churn: float = 0.0,
        config: DhtConfig | None = None,
        delays: Delays | None = None,
    ) -> None:
        self.config = config or DhtConfig()
        self.figures = Figures()
        self.now = 0.0
        self.nodes: dict[int, ModelNode] = {}
        self.rng = Random(seed)  # noqa: S311 - a simulation
        self._delays = delays or Delays()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._alive: list[int] = []
        for _ in range(nodes):
            self._born()
        self._introduce()
        for state in list(self.nodes.values()):
            self._maintain(state, spread=True)
        if churn > 0:
            self._leave_and_join(3600.0 / (nodes * churn))

    # Events

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something done later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    # Nodes

    def _born(self) -> ModelNode:
        peer = PeerId(self.rng.randbytes(32))
        state = ModelNode(Node(Contact(peer)), self.config)
        self.nodes[state.node.id] = state
        self._alive.append(state.node.id)
        return state

    def _introduce(self) -> None:
        """Fill the first tables as joins would have: of each range, some that lie in it."""
        ordered = sorted(self.nodes.values(), key=lambda state: state.node.id)
        for state in ordered:
            self._introduce_one(state, ordered, 0, len(ordered), 256)

    def _introduce_one(
        self, state: ModelNode, ordered: list[ModelNode], low: int, high: int, bits: int
    ) -> None:
        """Split what shares the first bits with this node into its own half and the other one."""
        while bits > 0 and high - low > 1:
            bit = 1 << (bits - 1)
            prefix = state.node.id >> bits << bits
            middle = _first_at_least(ordered, prefix | bit, low, high)
            upper = bool(state.node.id & bit)
            others = range(low, middle) if upper else range(middle, high)
            for index in self.rng.sample(others, min(self.config.k, len(others))):
                state.table.seen(ordered[index].node, self.now)
            low, high = (middle, high) if upper else (low, middle)
            bits -= 1

    def any_alive(self) -> ModelNode:
        """A node at random."""
        return self.nodes[self.rng.choice(self._alive)]

    def kill(self, state: ModelNode) -> None:
        """Let a node vanish without a word."""
        state.alive = False
        self._alive.remove(state.node.id)
        del self.nodes[state.node.id]

    def join(self) -> ModelNode:
        """Let a node come that knows one other."""
        known = self.any_alive()
        state = self._born()
        state.complete = False
        state.table.seen(known.node, self.now)

        def refresh(search: Search) -> None:
            self._take_over(state, search.lookup.closest[:NEIGHBOURS])
            for target in state.table.far_targets(self.rng):
                self.search(state, target, kind="join")

        self.search(state, state.node.id, kind="join", then=refresh)
        self._maintain(state, spread=False)
        return state

    def _take_over(self, state: ModelNode, neighbours: list[Node]) -> None:
        """Ask neighbours for what a new node should hold; `dht.node` does the same."""
        waiting = {node.id for node in neighbours}

        def answered(target: ModelNode) -> None:
            for record, left in self._due(target, state):
                self._storage(state).take_over(
                    record, left_s=left, now=_DATE + self.now, monotonic=self.now
                )
            ended(target.node)

        def ended(node: Node) -> None:
            waiting.discard(node.id)
            state.complete = not waiting

        for node in neighbours:
            self.ask(state, node, "hand over", answered, partial(ended, node))

    def _due(self, holder: ModelNode, to: ModelNode) -> list[tuple[Record, float]]:
        if holder.storage is None:
            return []
        return holder.storage.due_to(to.node.id, count=MAX_RECORDS, monotonic=self.now)

    def _storage(self, state: ModelNode) -> RecordStorage:
        if state.storage is None:
            state.storage = RecordStorage(state.table, config=self.config)
        return state.storage

    def _leave_and_join(self, every_s: float) -> None:
        def event() -> None:
            self.kill(self.any_alive())
            self.join()
            self.after(self.rng.expovariate(1.0 / every_s), event)

        self.after(self.rng.expovariate(1.0 / every_s), event)

    def _maintain(self, state: ModelNode, *, spread: bool) -> None:
        """What every node does from time to time, as `dht.node` does it."""
        config = self.config

        def refresh() -> None:
            if not state.alive:
                return
            for target in state.table.stale_targets(
                self.now, idle_s=config.refresh_s, rng=self.rng
            ):
                self.search(state, target, kind="refresh")
            self.after(config.refresh_s, refresh)

        def probe() -> None:
            if not state.alive:
                return
            for node in state.table.lost(1, self.now):
                self._ping(state, node)
            self.after(config.probe_s, probe)

        # Those who are there at first did not all start in the same second.
        share = self.rng.random() if spread else 1.0
        self.after(config.refresh_s * share, refresh)
        self.after(config.probe_s * share, probe)

    # Messages

    def ask(
        self,
        source: ModelNode,
        node: Node,
        kind: str,
        answered: Callable[[ModelNode], None],
        failed: Callable[[], None],
    ) -> None:
        """Send a request; `answered` gets the node that it reached, at the time of the answer."""
        self.figures.messages[kind] += 1
        delay = self._delays.draw(self.rng)

        def arrive() -> None:
            if not source.alive:
                return
            target = self.nodes.get(node.id)
            if target is None or delay > self.config.request_timeout_s:
                late = max(self.config.request_timeout_s - delay, 0.0)
                self.after(late, lambda: self._lost(source, node, failed))
                return
            self._met(target, source.node)
            answered(target)
            self._met(source, node)

        self.after(delay, arrive)

    def _lost(self, source: ModelNode, node: Node, failed: Callable[[], None]) -> None:
        if source.alive:
            source.table.failed(node.id, self.now)
            failed()

    def _met(self, state: ModelNode, node: Node) -> None:
        challenged = state.table.seen(node, self.now)
        if challenged is not None:
            self._ping(state, challenged)

    def _ping(self, state: ModelNode, node: Node) -> None:
        self.ask(state, node, "ping", lambda _target: None, lambda: None)

    # Lookups and announcements

    def search(
        self,
        source: ModelNode,
        target: int,
        *,
        kind: str,
        topic: str | None = None,
        then: Callable[[Search], None] | None = None,
    ) -> None:
        """Start a lookup."""
        Search(self, source, target, kind, topic, then or (lambda _search: None)).go_on()

    def announce(self, topic: str, publisher: ModelNode | None = None) -> ModelNode:
        """Have a node announce a topic, and renew it for as long as it lives."""
        state = publisher or self.any_alive()
        state.topics[topic] = 0
        period = self.config.ttl_s / RENEWALS_PER_TTL

        def renew() -> None:
            if not state.alive:
                return
            state.topics[topic] += 1
            fresh = self.now - state.looked_up_at.get(topic, -1e9) < self.config.holders_s
            if fresh:
                self._put(state, topic, state.holders[topic])
            else:
                self.search(state, topic_key(topic), kind="announce", then=found)
            self.after(period, renew)

        def found(search: Search) -> None:
            state.holders[topic] = search.lookup.closest
            state.looked_up_at[topic] = self.now
            self._put(state, topic, search.lookup.closest)

        self.after(self.rng.random() * period, renew)
        return state

    def _put(self, state: ModelNode, topic: str, holders: list[Node]) -> None:
        record = self._record(state, topic)
        lost = Counter[str]()

        def put(target: ModelNode) -> None:
            self._storage(target).put(
                record,
                sender=state.node.contact.peer_id,
                now=_DATE + self.now,
                monotonic=self.now,
            )

        def failed() -> None:
            lost["holders"] += 1
            if lost["holders"] * 4 > len(holders):
                state.looked_up_at.pop(topic, None)

        for node in holders:
            self.ask(state, node, "store", put, failed)

    def _record(self, state: ModelNode, topic: str) -> Record:
        return Record(
            topic=topic,
            contact=state.node.contact,
            certificate=_UNSIGNED,
            models=(),
            adapters=(),
            load=0.0,
            free_slots=0,
            sequence=state.topics[topic],
            expires_at=_DATE + self.now + self.config.ttl_s,
            ttl_s=self.config.ttl_s,
            withdrawn=False,
            encoded=b"%d" % state.topics[topic],
        )

    def measure(self, topic: str, publisher: ModelNode, source: ModelNode | None = None) -> None:
        """Look a topic up from somewhere, and count whether its publisher is found."""
        reader = source or self.any_alive()
        began = self.now
        figures = self.figures

        def ended(search: Search, *, again: bool) -> None:
            if not publisher.alive or not reader.alive:
                return  # Nobody can be right or wrong about it any more.
            found = any(r.contact == publisher.node.contact for r in merged(search.records))
            if not found and not again:
                figures.retried += 1
                start(again=True)
                return
            figures.lookups += 1
            figures.found += found
            if not found:
                figures.missed.append(topic)
            figures.seconds.append(self.now - began)
            figures.hops.append(search.lookup.hops)
            figures.asked.append(search.lookup.asked)

        def start(*, again: bool) -> None:
            self.search(
                reader,
                topic_key(topic),
                kind="lookup",
                topic=topic,
                then=lambda search: ended(search, again=again),
            )

        start(again=False)


class Search:
    """A lookup that is under way in the model.

    Attributes:
        lookup: the mesh's own.
        records: what the nodes that were asked had of the topic.
    """

    def __init__(
        self,
        model: DhtModel,
        source: ModelNode,
        target: int,
        kind: str,
        topic: str | None,
        then: Callable[[Search], None],
    ) -> None:
        config = model.config
        self.records: list[Record] = []
        self.lookup = Lookup(
            target,
            source.table.closest(target, config.k),
            own=source.node.id,
            config=config,
            rng=model.rng,
            quorum=None if topic is None else config.quorum,
        )
        self._model = model
        self._source = source
        self._kind = kind
        self._topic = topic
        self._then = then
        self._over = False
        source.table.looked_up(target, model.now)

    def go_on(self) -> None:
        """Ask whom the lookup says, or end."""
        if self._over or not self._source.alive:
            return
        for node in self.lookup.next(self._model.now):
            self._ask(node)
        if self.lookup.done(self._model.now):
            self._over = True
            self._then(self)
            return
        wake = self.lookup.wake_at(self._model.now)
        if wake is not None:
            self._model.after(wake - self._model.now, self.go_on)

    def _ask(self, node: Node) -> None:
        def answered(target: ModelNode) -> None:
            held: list[Record] = []
            if self._topic is not None and target.storage is not None and target.complete:
                held = target.storage.held(self._topic, self._model.now)
            known = {record.contact for record in self.records}
            new = any(record.contact not in known for record in held)
            self.records += held
            told = target.table.closest(self.lookup.target, self._model.config.k)
            self.lookup.answered(node.id, told, found=bool(held), new=new)
            self.go_on()

        def failed() -> None:
            self.lookup.failed(node.id)
            self.go_on()

        self._model.ask(self._source, node, self._kind, answered, failed)


def _first_at_least(ordered: list[ModelNode], value: int, low: int, high: int) -> int:
    while low < high:
        middle = (low + high) // 2
        if ordered[middle].node.id < value:
            low = middle + 1
        else:
            high = middle
    return low
