"""Whose turn it is in training: owners first, then the runs of each, by the tokens they had.

Owns the lanes that have work and their order. A lane is one training run; its work runs in the
order it came. The owner whose lanes had the fewest tokens is next, and of its lanes the one that
had the fewest, so that fifty runs of one owner have as much together as the only run of another.
Who comes back after a pause has earned no credit by it (`engine/sampling/fair_share.py`). Lanes
that had equally many go round in the order in which they came. Knows nothing of what work is.

Tokens and not seconds, as in sampling: on a busy machine a slice may take fifty times as long as
the same one before, and a run that was charged for that would wait until fifty others had as much.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from tinkex.engine.sampling.fair_share import FairShares

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.sampling.fair_share import Party

W = TypeVar("W")


@dataclass(slots=True, eq=False)
class Lane(Generic[W]):
    """One training run's work, in the order it came."""

    name: str
    owner: str
    queue: deque[W] = field(default_factory=deque)
    dropped: bool = False
    """Whether nobody waits for its work any more."""

    @property
    def party(self) -> Party:
        """Whose share it takes."""
        return self.owner, self.name


class Turns(Generic[W]):
    """The lanes that have work. Not thread-safe: whoever calls holds a lock."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane[W]] = {}
        self._waiting: deque[Lane[W]] = deque()
        self._shares = FairShares()

    def __bool__(self) -> bool:
        """Whether any lane waits for its turn."""
        return bool(self._waiting)

    def __len__(self) -> int:
        """How many lanes have work, those whose turn it is among them."""
        return len(self._lanes)

    @property
    def waiting(self) -> Sequence[Lane[W]]:
        """The lanes that wait for their turn, the one that waits longest first."""
        return self._waiting

    def lane(self, name: str) -> Lane[W] | None:
        """Find a lane that has work."""
        return self._lanes.get(name)

    def add(self, name: str, owner: str, work: W) -> None:
        """Put work at the end of a lane; a lane that had none gets a turn."""
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(name, owner)
            self._shares.enter(lane.party)
            self._waiting.append(lane)
        lane.queue.append(work)

    def drop(self, name: str) -> Lane[W] | None:
        """Forget a lane; whoever has it in hand sees that it is dropped."""
        lane = self._lanes.pop(name, None)
        if lane is None:
            return None
        lane.dropped = True
        self._shares.leave(lane.party)
        if lane in self._waiting:
            self._waiting.remove(lane)
        return lane

    def take(self) -> Lane[W] | None:
        """Take the lane whose turn it is."""
        if not self._waiting:
            return None
        lane = min(self._waiting, key=lambda one: self._shares.rank(one.party))
        self._waiting.remove(lane)
        return lane

    def take_this(self, lane: Lane[W]) -> None:
        """Take a lane that goes along with the one whose turn it is."""
        if not lane.dropped:
            self._waiting.remove(lane)

    def candidates(self, first: Lane[W]) -> list[Lane[W]]:
        """List the waiting lanes as they may go along with `first`: owners in turn."""
        ranked = sorted(self._waiting, key=lambda one: self._shares.rank(one.party))
        places: Counter[str] = Counter([first.owner])
        placed = []
        for lane in ranked:
            placed.append((places[lane.owner], lane))
            places[lane.owner] += 1
        return [lane for _, lane in sorted(placed, key=lambda one: one[0])]

    def charge(self, lane: Lane[W], tokens: int) -> None:
        """Count what a lane had; of a dropped one it counts no more."""
        if not lane.dropped:
            self._shares.charge(lane.party, tokens)

    def give_back(self, lane: Lane[W]) -> None:
        """Let a lane that was taken wait for its next turn, if it has work left."""
        if lane.dropped:
            return
        if lane.queue:
            self._waiting.append(lane)
        else:
            del self._lanes[lane.name]
            self._shares.leave(lane.party)
