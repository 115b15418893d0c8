"""What a node answers to others: whom it knows, what it holds; and whom it takes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from tinkex._clock import Clock
from tinkex.errors import TrustError
from tinkex.mesh.dht.api import (
    MAX_AUTHS,
    MAX_RECORDS,
    SERVING,
    DhtApi,
    FindAuth,
    FindNode,
    FindValue,
    FoundAuth,
    FoundNodes,
    FoundValue,
    HandedOver,
    HandOver,
    Held,
    Store,
    Stored,
    told,
)
from tinkex.mesh.dht.keys import Node, node_id, topic_key
from tinkex.mesh.dht.records import Record, RecordChecker
from tinkex.mesh.dht.routing import RoutingTable
from tinkex.mesh.dht.storage import RecordStorage, Verdict
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.transport.base import Contact

AUTH_TOPIC = "auth"


class DhtService(DhtApi):
    """The answering half of a node.

    Args:
        table: whom it knows.
        storage: what it holds.
        checker: says which records are believed.
        met: told of a contact that proved who it is.
        auths: looks auth workers up, remembering the answer for a while, for guests.
        k: how many nodes it tells.
        counts: of what was put, by verdict.

    Attributes:
        complete: whether the node has what its neighbours held before it came. Until then it shows
            nothing: a part would pass for the whole.
    """

    def __init__(
        self,
        table: RoutingTable,
        storage: RecordStorage,
        checker: RecordChecker,
        *,
        clock: Clock,
        k: int,
        met: Callable[[Node], None],
        auths: Callable[[], Awaitable[tuple[Record, ...]]],
        counts: Counter[str],
    ) -> None:
        self._table = table
        self._storage = storage
        self._checker = checker
        self._clock = clock
        self._k = k
        self._met = met
        self._auths = auths
        self._counts = counts
        self.complete = False

    async def rpc_find_node(self, request: FindNode, call: Call) -> FoundNodes:
        """Tell the nearest nodes."""
        target = int.from_bytes(request.target, "big")
        found = FoundNodes(told(self._table.closest(target, self._k)))
        self._admit(call, request.addresses)
        return found

    async def rpc_find_value(self, request: FindValue, call: Call) -> FoundValue:
        """Tell what is held of a topic, and the nearest nodes."""
        near = self._table.closest(topic_key(request.topic), self._k)
        held = self.held(request.topic) if self.complete else []
        records = tuple(record.encoded for record in held)
        self._admit(call, request.addresses)
        return FoundValue(records[:MAX_RECORDS], told(near))

    async def rpc_store(self, request: Store, call: Call) -> Stored:
        """Take the caller's records in, or say why not."""
        verdicts = tuple(self.put(encoded, sender=call.peer) for encoded in request.records)
        self._admit(call, request.addresses)
        return Stored(verdicts)

    async def rpc_hand_over(self, request: HandOver, call: Call) -> HandedOver:
        """Tell a node that came what it should hold."""
        due = self._storage.due_to(
            node_id(call.peer), count=MAX_RECORDS, monotonic=self._clock.monotonic()
        )
        self._admit(call, request.addresses)
        return HandedOver(
            tuple(
                Held(record.encoded, left)
                for record, left in due
                if self._is_welcome(record.contact.peer_id)
            )
        )

    async def rpc_find_auth(self, request: FindAuth, call: Call) -> FoundAuth:  # noqa: ARG002
        """Tell where auth workers are."""
        found = await self._auths()
        return FoundAuth(tuple(record.encoded for record in found[:MAX_AUTHS]))

    def held(self, topic: str) -> list[Record]:
        """Give what is held of a topic, without what peers published that were shut out since."""
        return [
            record
            for record in self._storage.held(topic, self._clock.monotonic())
            if self._is_welcome(record.contact.peer_id)
        ]

    def put(self, encoded: bytes, *, sender: PeerId) -> Verdict:
        """Take one record in, or say why not."""
        now = self._clock.now()
        monotonic = self._clock.monotonic()
        verdict = self._storage.refuses_fast(sender, monotonic)
        if verdict is None:
            try:
                record = self._checker.check(encoded, now=now)
            except TrustError:
                verdict = Verdict.INVALID
            else:
                verdict = self._storage.put(record, sender=sender, now=now, monotonic=monotonic)
        self._counts[f"put_{verdict.value}"] += 1
        return verdict

    def take_over(self, held: Held) -> None:
        """Take in what a neighbour held."""
        now = self._clock.now()
        try:
            record = self._checker.check(held.record, now=now)
        except TrustError:
            verdict = Verdict.INVALID
        else:
            verdict = self._storage.take_over(
                record, left_s=held.left_s, now=now, monotonic=self._clock.monotonic()
            )
        self._counts[f"handed_{verdict.value}"] += 1

    def _is_welcome(self, peer: PeerId) -> bool:
        try:
            self._checker.check_not_revoked(peer)
        except TrustError:
            return False
        return True

    def _admit(self, call: Call, addresses: tuple[str, ...]) -> None:
        """Take a caller in as a contact, if it is one that serves: its certificate says so."""
        if addresses and call.role in SERVING:
            self._met(Node(Contact(call.peer, addresses)))
