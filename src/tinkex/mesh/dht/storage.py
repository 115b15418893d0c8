"""What a node holds for others: records near it, few of each, not for long. Sans-IO.

Owns the limits; whether a record is to be believed, `records` says before it comes here. Each
limit is a method of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tinkex.mesh.dht.keys import topic_key
from tinkex.mesh.dht.records import MAX_TTL_S
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S

if TYPE_CHECKING:
    from tinkex.mesh.dht.config import DhtConfig
    from tinkex.mesh.dht.records import Record
    from tinkex.mesh.dht.routing import RoutingTable
    from tinkex.mesh.identity import PeerId

_REPLAYABLE_S = MAX_TTL_S + 2 * CLOCK_SKEW_S
"""No clock that is tolerated takes a record for valid longer than this after it was put."""
_SWEEP_S = 1.0
_PUTTERS = 16_384


class Verdict(StrEnum):
    """What became of a record that was put."""

    STORED = "stored"
    STALE = "stale"
    """A later one is held."""
    FOREIGN = "foreign"
    """It was not put by its publisher."""
    FAR = "far"
    """Others are nearer to its topic."""
    TOO_FAST = "too-fast"
    """The peer puts more often than it may."""
    TOO_MANY = "too-many"
    """The publisher has as many records here as it may."""
    FULL = "full"
    """The topic, or the node, has as many as it takes."""
    INVALID = "invalid"
    """It is not to be believed."""


@dataclass(slots=True)
class _Entry:
    """What is known of one publisher under one topic."""

    record: Record | None
    """None when it has expired, and its sequence alone is remembered, against replays."""
    sequence: int
    expires: float
    forget: float


class RecordStorage:
    """The records that one node holds.

    Args:
        table: says who else is near a topic.
    """

    def __init__(self, table: RoutingTable, *, config: DhtConfig) -> None:
        self._table = table
        self._k = config.k
        self._limits = config.limits
        self._topics: dict[str, dict[PeerId, _Entry]] = {}
        self._published: dict[PeerId, int] = {}
        self._entries = 0
        self._next_expiry = float("inf")
        # By peer: puts it may make at once, and when that was counted.
        self._allowances: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return self._entries

    def refuses_fast(self, sender: PeerId, monotonic: float) -> Verdict | None:
        """Count a put, and refuse it if its sender makes too many.

        Asked before a record is checked: signatures are what a flood would cost.
        """
        burst = float(self._limits.put_burst)
        allowance, since = self._allowances.pop(sender, (burst, monotonic))
        allowance = min(burst, allowance + (monotonic - since) * self._limits.puts_per_s)
        fast = allowance < 1.0
        self._allowances[sender] = (allowance if fast else allowance - 1.0, monotonic)
        if len(self._allowances) > _PUTTERS:
            self._allowances.popitem(last=False)
        return Verdict.TOO_FAST if fast else None

    def put(self, record: Record, *, sender: PeerId, now: float, monotonic: float) -> Verdict:
        """Take a record in, or say why not.

        Args:
            record: believed.
            sender: the peer that put it.
            now: wall-clock seconds, to compare with its expiry.
            monotonic: seconds by which it is held, whatever happens to the wall clock.
        """
        self.expire(monotonic)
        verdict = (
            self._refuses_foreign(record, sender)
            or self._refuses_stale(record)
            or self._refuses_far(record)
            or self._refuses_many(record)
            or self._refuses_full(record)
        )
        if verdict is not None:
            return verdict
        self._hold(record, now, monotonic)
        return Verdict.STORED

    def take_over(self, record: Record, *, left_s: float, now: float, monotonic: float) -> Verdict:
        """Take in a record that a neighbour held before this node came.

        Args:
            record: believed.
            left_s: how much longer the neighbour holds it, so that no record lives longer by being
                handed on; at most its own time is believed.
            now: wall-clock seconds.
            monotonic: seconds by which it is held.
        """
        if not left_s > 0:  # nor is a NaN
            return Verdict.STALE
        self.expire(monotonic)
        verdict = (
            self._refuses_stale(record)
            or self._refuses_far(record)
            or self._refuses_many(record)
            or self._refuses_full(record)
        )
        if verdict is not None:
            return verdict
        self._hold(record, now, monotonic, at_most=left_s)
        return Verdict.STORED

    def due_to(self, node_id: int, *, count: int, monotonic: float) -> list[tuple[Record, float]]:
        """Give the records that another node should hold too, and how long each is held yet."""
        self.expire(monotonic)
        found: list[tuple[int, Record, float]] = []
        for topic, entries in self._topics.items():
            key = topic_key(topic)
            if self._table.is_near_of(node_id, key, self._k):
                found += [
                    (node_id ^ key, entry.record, entry.expires - monotonic)
                    for entry in entries.values()
                    if entry.record is not None and monotonic < entry.expires
                ]
        found.sort(key=lambda one: one[0])
        return [(record, left) for _, record, left in found[:count]]

    def held(self, topic: str, monotonic: float) -> list[Record]:
        """Give what is held of a topic, withdrawals among it, so that readers can tell."""
        self.expire(monotonic)
        entries = self._topics.get(topic, {}).values()
        return [e.record for e in entries if e.record is not None and monotonic < e.expires]

    def expire(self, monotonic: float) -> None:
        """Let go of what is over: a walk through all, at most once a second."""
        if monotonic < self._next_expiry:
            return
        upcoming = float("inf")
        for topic, entries in list(self._topics.items()):
            for publisher, entry in list(entries.items()):
                if entry.record is not None and monotonic >= entry.expires:
                    entry.record = None
                if monotonic >= entry.forget:
                    self._forget(topic, publisher)
                else:
                    due = entry.forget if entry.record is None else entry.expires
                    upcoming = min(upcoming, due)
        self._next_expiry = max(upcoming, monotonic + _SWEEP_S)

    def _refuses_foreign(self, record: Record, sender: PeerId) -> Verdict | None:
        """Refuse what another than its publisher puts.

        Publishers put their records themselves, and anew at each renewal: others replay them.
        """
        return None if record.contact.peer_id == sender else Verdict.FOREIGN

    def _refuses_stale(self, record: Record) -> Verdict | None:
        entry = self._entry(record)
        if entry is None or record.sequence > entry.sequence:
            return None
        # The very same again is no replay: its publisher did not hear our answer.
        same = entry.record is not None and entry.record.encoded == record.encoded
        return Verdict.STORED if same else Verdict.STALE

    def _refuses_far(self, record: Record) -> Verdict | None:
        near = self._table.is_near(topic_key(record.topic), self._k)
        return None if near else Verdict.FAR

    def _refuses_many(self, record: Record) -> Verdict | None:
        if self._entry(record) is not None:
            return None
        published = self._published.get(record.contact.peer_id, 0)
        return Verdict.TOO_MANY if published >= self._limits.per_publisher else None

    def _refuses_full(self, record: Record) -> Verdict | None:
        if self._entry(record) is not None:
            return None
        of_topic = len(self._topics.get(record.topic, ()))
        full = of_topic >= self._limits.per_topic or self._entries >= self._limits.records
        return Verdict.FULL if full else None

    def _entry(self, record: Record) -> _Entry | None:
        return self._topics.get(record.topic, {}).get(record.contact.peer_id)

    def _hold(
        self, record: Record, now: float, monotonic: float, *, at_most: float = float("inf")
    ) -> None:
        """Hold a record for its time from now on, whatever its publisher's clock says.

        A withdrawal is held as long as what it takes back could be replayed.
        """
        left = min(record.expires_at + CLOCK_SKEW_S - now, at_most)
        expires = monotonic + (left if record.withdrawn else min(record.ttl_s, left))
        forget = monotonic + _REPLAYABLE_S
        publisher = record.contact.peer_id
        if self._entry(record) is None:
            self._entries += 1
            self._published[publisher] = self._published.get(publisher, 0) + 1
        entries = self._topics.setdefault(record.topic, {})
        entries[publisher] = _Entry(record, record.sequence, expires, forget)
        # Not sooner than the walk that is due at the latest a second after the last one.
        self._next_expiry = min(self._next_expiry, max(expires, monotonic + _SWEEP_S))

    def _forget(self, topic: str, publisher: PeerId) -> None:
        del self._topics[topic][publisher]
        if not self._topics[topic]:
            del self._topics[topic]
        self._entries -= 1
        self._published[publisher] -= 1
        if self._published[publisher] == 0:
            del self._published[publisher]
