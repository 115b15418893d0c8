"""Carrying lookups out: the requests, the clock, and what is believed of the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from random import Random

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import LinkClosedError, TinkerError, TrustError
from tinkex.mesh.dht.api import DhtApi, FindNode, FindValue, FoundValue, nodes_of
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.keys import Node, topic_key
from tinkex.mesh.dht.lookup import Lookup
from tinkex.mesh.dht.records import Record, RecordChecker
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.tasks import Tasks

_BAD_RECORDS = 8
"""So many records that are not to be believed, and the rest of an answer is not looked at."""


class Searches:
    """Asks other nodes.

    Args:
        start: gives the nodes of the own table that are nearest to a key.
        met: told of a node that answered.
        lost: told of one that did not.
        addresses: where this node is reached; empty if it only asks.
        tasks: own the requests that a lookup did not wait for; their answers still teach the table.
        counts: of lookups, requests and refused records.
    """

    def __init__(
        self,
        peers: Peers,
        checker: RecordChecker,
        *,
        clock: Clock,
        timers: Timers,
        config: DhtConfig,
        rng: Random,
        own: int,
        start: Callable[[int], list[Node]],
        met: Callable[[Node], None],
        lost: Callable[[Node], None],
        addresses: Callable[[], tuple[str, ...]],
        tasks: Tasks,
        counts: Counter[str],
    ) -> None:
        self._peers = peers
        self._checker = checker
        self._clock = clock
        self._timers = timers
        self._config = config
        self._rng = rng
        self._own = own
        self._start = start
        self._met = met
        self._lost = lost
        self._addresses = addresses
        self._tasks = tasks
        self._counts = counts
        self._closed = False
        self._waiting: dict[asyncio.Event, None] = {}  # in order: simulations repeat

    def open(self) -> None:
        """Allow lookups, at first and after `close`."""
        self._closed = False

    def close(self) -> None:
        """End what is looked up, with an error, and allow no more."""
        self._closed = True
        for event in self._waiting:
            event.set()

    async def find_nodes(self, target: int, start: Iterable[Node] = ()) -> list[Node]:
        """Give the living nodes nearest to an id, `k` at most, nearest first.

        Args:
            target: the id.
            start: nodes to begin with besides those of the table.

        Raises:
            LinkClosedError: this node does not run, or was stopped.
        """
        first = [*self._start(target), *start]
        lookup = Lookup(target, first, own=self._own, config=self._config, rng=self._rng)
        request = FindNode(target.to_bytes(32, "big"), self._addresses())

        async def ask(node: Node) -> tuple[list[Node], bool, bool]:
            reply = await self._peers.call(
                node.contact,
                DhtApi.rpc_find_node,
                request,
                timeout_s=self._config.request_timeout_s,
            )
            return nodes_of(reply.nodes), False, False

        await self._run(lookup, ask)
        return lookup.closest

    async def find_records(self, topic: str) -> list[Record]:
        """Give the records of a topic that the nodes nearest to it hold, withdrawals included.

        Raises:
            LinkClosedError: this node does not run, or was stopped.
        """
        target = topic_key(topic)
        records: list[Record] = []
        lookup = Lookup(
            target,
            self._start(target),
            own=self._own,
            config=self._config,
            rng=self._rng,
            quorum=self._config.quorum,
        )
        request = FindValue(topic, self._addresses())

        async def ask(node: Node) -> tuple[list[Node], bool, bool]:
            reply = await self._peers.call(
                node.contact,
                DhtApi.rpc_find_value,
                request,
                timeout_s=self._config.request_timeout_s,
            )
            found = self._believed(reply, topic)
            publishers = {record.contact.peer_id for record in found}
            new = not publishers <= {record.contact.peer_id for record in records}
            records.extend(found)
            return nodes_of(reply.nodes), bool(found), new

        await self._run(lookup, ask)
        return records

    def _believed(self, reply: FoundValue, topic: str) -> list[Record]:
        """The records of an answer that hold; a liar's many are not all looked at."""
        found: list[Record] = []
        bad = 0
        for encoded in reply.records:
            try:
                found.append(self._checker.check(encoded, now=self._clock.now(), topic=topic))
            except TrustError:
                bad += 1
                if bad >= _BAD_RECORDS:
                    break
        self._counts["refused_records"] += bad
        return found

    async def _run(
        self, lookup: Lookup, ask: Callable[[Node], Awaitable[tuple[list[Node], bool, bool]]]
    ) -> None:
        changed = asyncio.Event()
        self._counts["searches"] += 1

        async def asked(node: Node) -> None:
            try:
                nodes, found, new = await ask(node)
            except TinkerError:
                lookup.failed(node.id)
                self._lost(node)
            else:
                lookup.answered(node.id, nodes, found=found, new=new)
                self._met(node)
            changed.set()

        self._waiting[changed] = None
        try:
            while not self._closed:
                now = self._clock.monotonic()
                for node in lookup.next(now):
                    self._counts["requests"] += 1
                    self._tasks.spawn(asked(node), name="ask a node of the DHT")
                if lookup.done(now):
                    return
                await self._wait(changed, lookup.wake_at(now), now)
        finally:
            self._waiting.pop(changed, None)
        raise LinkClosedError("this node of the DHT does not run: start it first")

    async def _wait(self, changed: asyncio.Event, until: float | None, now: float) -> None:
        """Wait for an answer, or until a request is slow."""
        timer = None if until is None else self._timers.call_later(until - now, changed.set)
        await changed.wait()
        changed.clear()
        if timer is not None:
            timer.cancel()
