"""Whom a node knows: buckets of contacts by distance, the longest known first. Sans-IO.

Owns who is kept, who has to wait, who was lost. Only nodes that proved who they are are put in
(`node` sees to it): what others merely tell is for the lookup that asked, never for the table.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from tinkex.mesh.dht.keys import ID_BITS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from tinkex.mesh.dht.keys import Node

CHALLENGE_S = 30.0
"""A full bucket's oldest contact is asked for a sign of life at most this often."""
_LOST = 64
_FORGET_S = 3600.0


class _Bucket:
    """Contacts of one range of distances.

    Attributes:
        nodes: by id, least recently seen first.
        spare: those who find no room, latest seen last; one takes the place of a node that is lost.
        looked_up_at: when a lookup last went into this range.
    """

    __slots__ = ("challenged_at", "looked_up_at", "nodes", "spare")

    def __init__(self, now: float) -> None:
        self.nodes: dict[int, Node] = {}
        self.spare: dict[int, Node] = {}
        self.looked_up_at = now
        self.challenged_at = float("-inf")


class RoutingTable:
    """The contacts of one node. Times are monotonic seconds.

    Args:
        own: the node's id.
        k: contacts in a bucket.
    """

    def __init__(self, own: int, *, k: int) -> None:
        self.own = own
        self._k = k
        self._buckets: dict[int, _Bucket] = {}
        self._lost: OrderedDict[int, tuple[Node, float]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(bucket.nodes) for bucket in self._buckets.values())

    def __contains__(self, node_id: int) -> bool:
        bucket = self._buckets.get((self.own ^ node_id).bit_length())
        return bucket is not None and node_id in bucket.nodes

    def __iter__(self) -> Iterator[Node]:
        for bucket in self._buckets.values():
            yield from bucket.nodes.values()

    def seen(self, node: Node, now: float) -> Node | None:
        """Note a sign of life of a node that proved who it is.

        Returns:
            The node that must be asked for a sign of life of its own, because it would have to make
            room: report what comes of it with `seen` or `failed`.
        """
        if node.id == self.own:
            return None
        self._lost.pop(node.id, None)
        index = (self.own ^ node.id).bit_length()
        bucket = self._buckets.get(index)
        if bucket is None:
            bucket = self._buckets[index] = _Bucket(now)
        if bucket.nodes.pop(node.id, None) is not None or len(bucket.nodes) < self._k:
            bucket.spare.pop(node.id, None)
            bucket.nodes[node.id] = node
            return None
        return self._wait(bucket, node, now)

    def _wait(self, bucket: _Bucket, node: Node, now: float) -> Node | None:
        """Keep those that a full bucket has, as long as they answer.

        Who fills it with newcomers, however many, gets nobody out.
        """
        bucket.spare.pop(node.id, None)
        bucket.spare[node.id] = node
        if len(bucket.spare) > self._k:
            del bucket.spare[next(iter(bucket.spare))]
        if now - bucket.challenged_at < CHALLENGE_S:
            return None
        bucket.challenged_at = now
        return next(iter(bucket.nodes.values()))

    def failed(self, node_id: int, now: float) -> None:
        """Note that a node gave no answer: it is told to nobody until it is seen again."""
        bucket = self._buckets.get((self.own ^ node_id).bit_length())
        if bucket is None:
            return
        bucket.spare.pop(node_id, None)
        node = bucket.nodes.pop(node_id, None)
        if node is None:
            return
        if bucket.spare:
            latest = next(reversed(bucket.spare))
            bucket.nodes[latest] = bucket.spare.pop(latest)
        self._lost[node_id] = (node, now)
        if len(self._lost) > _LOST:
            self._lost.popitem(last=False)

    def is_lost(self, node_id: int) -> bool:
        """Whether a node gave no answer when it was last asked."""
        return node_id in self._lost

    def lost(self, count: int, now: float) -> list[Node]:
        """Give some of the nodes that were lost, in turns, to be tried again.

        So the two halves of a network that fell apart find together again. After an hour a node is
        forgotten.
        """
        for node_id, (_, since) in list(self._lost.items()):
            if now - since > _FORGET_S:
                del self._lost[node_id]
        turn = list(self._lost)[:count]
        for node_id in turn:
            self._lost.move_to_end(node_id)
        return [self._lost[node_id][0] for node_id in turn]

    def closest(self, target: int, count: int) -> list[Node]:
        """The known nodes nearest to `target`, nearest first."""
        near = (self.own ^ target).bit_length()
        found = self._in(near)
        if len(found) < count:
            # All that are nearer to us than the target is: as far from it as we are.
            for index in self._buckets:
                if index < near:
                    found += self._in(index)
        for index in sorted(self._buckets):
            if len(found) >= count:
                break
            if index > near:
                found += self._in(index)
        found.sort(key=lambda node: node.id ^ target)
        return found[:count]

    def _in(self, index: int) -> list[Node]:
        bucket = self._buckets.get(index)
        return [] if bucket is None else list(bucket.nodes.values())

    def is_near(self, key: int, count: int) -> bool:
        """Whether fewer than `count` known nodes are nearer to `key` than this one."""
        return self.is_near_of(self.own, key, count)

    def is_near_of(self, node_id: int, key: int, count: int) -> bool:
        """Whether another node belongs to the `count` nearest to `key` that are known."""
        nearest = self.closest(key, count)
        return len(nearest) < count or node_id ^ key <= nearest[-1].id ^ key

    def looked_up(self, target: int, now: float) -> None:
        """Note that a lookup of `target` was made, which refreshed its bucket."""
        bucket = self._buckets.get((self.own ^ target).bit_length())
        if bucket is not None:
            bucket.looked_up_at = now

    def stale_targets(self, now: float, *, idle_s: float, rng: Random) -> list[int]:
        """A random id in every bucket that no lookup went into for `idle_s`."""
        return [
            self._random_id(index, rng)
            for index, bucket in self._buckets.items()
            if now - bucket.looked_up_at >= idle_s
        ]

    def far_targets(self, rng: Random) -> list[int]:
        """A random id in each bucket that is farther than the nearest contact.

        Who joins looks these up, after itself, to be known all over the network.
        """
        known = [index for index, bucket in self._buckets.items() if bucket.nodes]
        if not known:
            return []
        return [self._random_id(index, rng) for index in range(min(known) + 1, ID_BITS + 1)]

    def _random_id(self, index: int, rng: Random) -> int:
        # The distance's highest bit is set, the others are free.
        bit = 1 << (index - 1)
        return self.own ^ (bit | rng.getrandbits(index) & (bit - 1))
