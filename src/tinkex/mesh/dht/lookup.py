"""How a node asks its way to a key: nearer and nearer, some at a time. Sans-IO.

Owns whom to ask next and when to stop. Who asks tells it what came back; values are only counted.

A request that takes longer than `hedge_s` no longer holds up others, though its answer still
counts: a dead node costs 150 ms, not its time-out.
"""

from __future__ import annotations

from bisect import insort
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from tinkex.mesh.dht.config import DhtConfig
    from tinkex.mesh.dht.keys import Node

_DEAD_TELLS = 4
"""So many dead contacts by one node, and twice as many as live ones, and it is not followed."""
_TELLERS = 4
"""Of each candidate, at most."""


class _State(Enum):
    FRESH = auto()
    ASKED = auto()
    SLOW = auto()
    ANSWERED = auto()
    DEAD = auto()


class _Candidate:
    """A node that may be asked.

    Attributes:
        tellers: ids of the first nodes that told of it; empty for one of our own table.
        hops: how many nodes had to be asked to reach it, itself included.
    """

    __slots__ = ("asked_at", "distance", "found", "hops", "node", "state", "tellers")

    def __init__(self, node: Node, distance: int, teller: int | None, hops: int) -> None:
        self.node = node
        self.distance = distance
        self.tellers = [] if teller is None else [teller]
        self.hops = hops
        self.state = _State.FRESH
        self.asked_at = 0.0
        self.found = False

    def __lt__(self, other: _Candidate) -> bool:
        return self.distance < other.distance


class Lookup:
    """One lookup. Times are monotonic seconds.

    Args:
        target: the key, or the node id.
        start: nodes of our own table.
        own: our own id; nobody needs to tell us of ourselves.
        rng: chooses witnesses.
        quorum: stop when so many of the nearest nodes had values; None to ask all `k` nearest.
    """

    def __init__(
        self,
        target: int,
        start: Iterable[Node],
        *,
        own: int,
        config: DhtConfig,
        rng: Random,
        quorum: int | None = None,
    ) -> None:
        self.target = target
        self.asked = 0
        """How many nodes were asked."""
        self._own = own
        self._config = config
        self._rng = rng
        self._quorum = quorum
        self._witnesses: list[_Candidate] = []
        self._surprises = 0
        self._valued = False
        self._candidates: dict[int, _Candidate] = {}
        self._order: list[_Candidate] = []
        # Asked, or slow: those that an answer may still come of.
        self._waiting: dict[int, _Candidate] = {}
        # By teller: how many of its contacts were dead, and how many answered.
        self._tells: dict[int, tuple[int, int]] = {}
        for node in start:
            self._add(node, None, 1)

    def next(self, now: float) -> list[Node]:
        """Give the nodes to ask now; empty while enough are on their way, and at the end."""
        self._note_slow(now)
        if self._ended(now) or self.asked >= self._most():
            return []
        room = self._width() - self._on_their_way()
        chosen = [c for c in self._wanted() if c.state is _State.FRESH][: max(room, 0)]
        for candidate in chosen:
            candidate.state = _State.ASKED
            candidate.asked_at = now
            self._waiting[candidate.node.id] = candidate
        self.asked += len(chosen)
        return [candidate.node for candidate in chosen]

    def answered(
        self, node_id: int, told: Sequence[Node], *, found: bool, new: bool = False
    ) -> None:
        """Note a node's answer.

        Args:
            node_id: whose.
            told: the contacts that it told.
            found: whether it had values.
            new: whether one of them was in no answer before: those who disagree are believed
                together, and one more is asked.
        """
        candidate = self._waiting.pop(node_id)
        candidate.state = _State.ANSWERED
        self._surprises += new and self._valued
        self._valued = self._valued or found
        candidate.found = found
        self._tell(candidate, dead=False)
        for node in self._sane(told):
            self._add(node, node_id, candidate.hops + 1)

    def failed(self, node_id: int) -> None:
        """Note that a node gave no answer, or nonsense."""
        candidate = self._waiting.pop(node_id)
        candidate.state = _State.DEAD
        self._tell(candidate, dead=True)

    def done(self, now: float) -> bool:
        """Whether there is nobody left to ask or to wait for."""
        self._note_slow(now)
        return self._ended(now)

    def wake_at(self, now: float) -> float | None:
        """When `next` or `done` may give something else without an answer; None for never."""
        self._note_slow(now)
        hedge, patience = self._config.hedge_s, self._config.patience_s
        times = [
            c.asked_at + (hedge if c.state is _State.ASKED else patience)
            for c in self._waiting.values()
        ]
        return min((time for time in times if time > now), default=None)

    @property
    def closest(self) -> list[Node]:
        """Those that answered, the `k` nearest, nearest first."""
        answered = [c.node for c in self._order if c.state is _State.ANSWERED]
        return answered[: self._config.k]

    @property
    def hops(self) -> int:
        """How many nodes had to be asked, one after the other, to reach the first value.

        Without one, to reach the nearest node.
        """
        answered = [c for c in self._order if c.state is _State.ANSWERED]
        valued = [c.hops for c in answered if c.found]
        return min(valued) if valued else next((c.hops for c in answered), 0)

    def _sane(self, told: Sequence[Node]) -> Sequence[Node]:
        """What one node may tell: `k` contacts. The rest of a million is not looked at."""
        return told[: self._config.k]

    def _is_followed(self, candidate: _Candidate) -> bool:
        """Whether somebody who told of this candidate tells of living ones.

        One that makes up contacts, each nearer than any other, would else have them all asked.
        """
        return not candidate.tellers or any(map(self._is_truthful, candidate.tellers))

    def _is_truthful(self, teller: int) -> bool:
        dead, alive = self._tells.get(teller, (0, 0))
        return dead < _DEAD_TELLS or dead <= 2 * alive

    def _add(self, node: Node, teller: int | None, hops: int) -> None:
        if node.id == self._own:
            return
        held = self._candidates.get(node.id)
        if held is not None:
            if teller is not None and held.tellers and len(held.tellers) < _TELLERS:
                held.tellers.append(teller)
            return
        candidate = _Candidate(node, node.id ^ self.target, teller, hops)
        self._candidates[node.id] = candidate
        insort(self._order, candidate)

    def _tell(self, candidate: _Candidate, *, dead: bool) -> None:
        for teller in candidate.tellers:
            gone, alive = self._tells.get(teller, (0, 0))
            self._tells[teller] = (gone + dead, alive + (not dead))

    def _note_slow(self, now: float) -> None:
        for candidate in self._waiting.values():
            # The very sum that `wake_at` gives: who wakes then must find it slow, rounding or not.
            if candidate.asked_at + self._config.hedge_s <= now:
                candidate.state = _State.SLOW

    def _width(self) -> int:
        """Requests that may be on their way: more, the more nodes are silent."""
        slow = len(self._waiting) - self._on_their_way()
        return min(self._config.alpha + slow, 3 * self._config.alpha)

    def _on_their_way(self) -> int:
        return sum(c.state is _State.ASKED for c in self._waiting.values())

    def _frontier(self) -> list[_Candidate]:
        """The `k` nearest that are neither dead nor slow: all of them must answer."""
        frontier: list[_Candidate] = []
        for candidate in self._order:
            if candidate.state in {_State.DEAD, _State.SLOW}:
                continue
            if candidate.state is _State.FRESH and not self._is_followed(candidate):
                continue
            frontier.append(candidate)
            if len(frontier) == self._config.k:
                break
        return frontier

    def _ended(self, now: float) -> bool:
        if self.asked >= self._most():
            return self._on_their_way() == 0
        frontier = self._frontier()
        if self._has_quorum(frontier):
            return self._have_testified(frontier)
        if any(candidate.state is not _State.ANSWERED for candidate in frontier):
            return False
        return len(frontier) >= self._config.k or not self._still_waits(now)

    def _most(self) -> int:
        """Whoever answers with nearer and nearer contacts for ever is left after so many."""
        return 8 * self._config.k

    def _wanted(self) -> list[_Candidate]:
        """Whom to ask, first those that come first: the nearest, then witnesses, then the rest."""
        frontier = self._frontier()
        if self._quorum is None:
            return frontier
        self._choose_witnesses(frontier)
        if self._has_quorum(frontier):
            return self._witnesses
        rest = [c for c in frontier[self._quorum :] if c not in self._witnesses]
        return [*frontier[: self._quorum], *self._witnesses, *rest]

    def _has_quorum(self, frontier: list[_Candidate]) -> bool:
        """Whether enough of the nearest had values, and nobody nearer may still have some."""
        if self._quorum is None:
            return False
        found = 0
        for candidate in frontier:
            if candidate.state is not _State.ANSWERED:
                return False
            found += candidate.found
            if found >= self._quorum:
                return True
        return False

    def _choose_witnesses(self, frontier: list[_Candidate]) -> None:
        """Choose some of the near nodes at random, one more than needed: one may be dead."""
        others = frontier[self._quorum :]
        self._witnesses = [candidate for candidate in self._witnesses if candidate in others]
        left = [candidate for candidate in others if candidate not in self._witnesses]
        missing = self._config.witnesses + self._surprises + 1 - len(self._witnesses)
        self._witnesses += self._rng.sample(left, min(max(missing, 0), len(left)))

    def _have_testified(self, frontier: list[_Candidate]) -> bool:
        """Whether witnesses answered as well.

        Keys cost nothing until they are certified, so whoever has a few invitations can take keys
        that lie nearest to a topic, and agree there on hiding somebody. Since a record is held by
        all `k` nearest, a witness that they could not foresee tells.
        """
        others = len(frontier[self._quorum :])
        testified = sum(candidate.state is _State.ANSWERED for candidate in self._witnesses)
        return testified >= min(self._config.witnesses + self._surprises, others)

    def _still_waits(self, now: float) -> bool:
        patience = self._config.patience_s
        return any(c.asked_at + patience > now for c in self._waiting.values())
