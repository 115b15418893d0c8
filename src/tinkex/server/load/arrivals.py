"""Samples on their way into an engine: each owner's in their order, owners in turn.

Owns who is let in next while there is memory for some and not for all, so that an owner whose
samples wait for room for their weights holds up nobody else's. What happens inside the engine is
`engine/sampling/scheduler.py`'s.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection


class _Job(Protocol):
    @property
    def job_id(self) -> str: ...

    @property
    def owner(self) -> str: ...


class _Sample(Protocol):
    @property
    def job(self) -> _Job: ...


S = TypeVar("S", bound=_Sample)


class Arrivals(Generic[S]):
    """What has arrived and is not in the engine yet."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[S]] = OrderedDict()
        self._ids: set[str] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._ids

    def add(self, sample: S) -> None:
        """Put a sample behind those of its owner."""
        self._queues.setdefault(sample.job.owner, deque()).append(sample)
        self._ids.add(sample.job.job_id)

    def next_owner(self, passed: Collection[str]) -> str | None:
        """Give the owner whose turn it is, but for those that were passed over."""
        return next((owner for owner in self._queues if owner not in passed), None)

    def first(self, owner: str) -> S:
        """Give an owner's next sample."""
        return self._queues[owner][0]

    def pop(self, owner: str) -> None:
        """Take an owner's next sample out, and put the owner behind the others."""
        queue = self._queues[owner]
        self._ids.discard(queue.popleft().job.job_id)
        if queue:
            self._queues.move_to_end(owner)
        else:
            del self._queues[owner]

    def remove(self, job_ids: Collection[str]) -> None:
        """Take samples out, wherever they stand; those that are not there are no matter."""
        gone = self._ids.intersection(job_ids)
        if not gone:
            return
        self._ids -= gone
        for owner, queue in list(self._queues.items()):
            left = deque(one for one in queue if one.job.job_id not in gone)
            if left:
                self._queues[owner] = left
            else:
                del self._queues[owner]
