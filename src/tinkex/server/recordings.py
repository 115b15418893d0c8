"""What was sampled, kept for training: tokens and log-probabilities by sequence id.

Owns which sequences are kept, for whom, how long, and how many bytes of them. What training does
with them is `provenance`'s. They are kept in memory: a recording belongs to a session, and no
session outlives the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tinkex._clock import Clock
    from tinkex.server.timers import Timer, Timers
    from tinkex.types import ModelInput, SampleResponse

OVERHEAD_BYTES = 512
"""Counted for each sequence and each request besides its arrays: what Python needs for them."""


@dataclass(frozen=True, slots=True)
class RecordedSequence:
    """One sampled sequence, as its sampler knew it."""

    prompt: NDArray[np.int32]
    """[P] tokens; one array for all samples of a request."""
    tokens: NDArray[np.int32]
    """[T] tokens."""
    logprobs: NDArray[np.float32]
    """[T], as the reply gave them: of the model's softmax at temperature 1, in nats."""


@dataclass(slots=True, eq=False)
class _Request:
    """All sequences of one sample request; they come and go together."""

    owner: str
    session_id: str
    sequences: Mapping[str, RecordedSequence]
    size: int
    deadline: float


class Recordings:
    """Keeps recorded sequences until their time is over or their owner's room is full.

    Args:
        clock: tells time.
        timers: frees what has expired.
        ttl_s: seconds that a sequence stays after it was sampled or last trained on.
        max_bytes: of one owner; above it what was used least recently goes.
    """

    def __init__(self, clock: Clock, timers: Timers, *, ttl_s: float, max_bytes: int) -> None:
        self._clock = clock
        self._timers = timers
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._by_id: dict[tuple[str, str], _Request] = {}
        self._shelves: dict[str, dict[_Request, None]] = {}
        """By owner, what was used least recently first."""
        self._sizes: dict[str, int] = {}
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def used_bytes(self, owner: str) -> int:
        """Give the bytes counted for an owner."""
        return self._sizes.get(owner, 0)

    def add(
        self, owner: str, session_id: str, prompt: ModelInput, response: SampleResponse
    ) -> None:
        """Keep the sequences of a sample request under the ids that its reply gives them."""
        empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
        context = prompt.tokens_np().copy()
        sequences = {
            one.sequence_id: RecordedSequence(
                context,
                empty[0] if one.tokens_np is None else one.tokens_np.copy(),
                empty[1] if one.logprobs_np is None else one.logprobs_np.copy(),
            )
            for one in response.sequences
        }
        arrays = [context, *(a for s in sequences.values() for a in (s.tokens, s.logprobs))]
        size = sum(a.nbytes for a in arrays) + OVERHEAD_BYTES * (1 + len(sequences))
        deadline = self._clock.monotonic() + self._ttl_s
        request = _Request(owner, session_id, sequences, size, deadline)
        shelf = self._shelves.setdefault(owner, {})
        shelf[request] = None
        self._sizes[owner] = self._sizes.get(owner, 0) + size
        self._by_id.update(dict.fromkeys(((session_id, name) for name in sequences), request))
        while self._sizes.get(owner, 0) > self._max_bytes:
            self._drop(next(iter(shelf)))
        self._arm()

    def find(self, session_id: str, sequence_id: str) -> RecordedSequence | None:
        """Return a sequence of a session, and begin its time anew; None when there is none."""
        self._drop_expired()
        request = self._by_id.get((session_id, sequence_id))
        if request is None:
            return None
        request.deadline = self._clock.monotonic() + self._ttl_s
        shelf = self._shelves[request.owner]
        del shelf[request]
        shelf[request] = None
        return request.sequences[sequence_id]

    def end_session(self, session_id: str) -> None:
        """Forget what a session sampled."""
        self._drop_where(lambda request: request.session_id == session_id)

    def _drop_expired(self) -> None:
        """Drop what is past its deadline; each shelf is in the order of the deadlines."""
        now = self._clock.monotonic()
        for shelf in list(self._shelves.values()):
            for request in list(shelf):
                if request.deadline > now:
                    break
                self._drop(request)

    def _drop_where(self, chosen: Callable[[_Request], bool]) -> None:
        found = [one for shelf in self._shelves.values() for one in shelf if chosen(one)]
        for request in found:
            self._drop(request)

    def _drop(self, request: _Request) -> None:
        owner = request.owner
        del self._shelves[owner][request]
        self._sizes[owner] -= request.size
        for name in request.sequences:
            self._by_id.pop((request.session_id, name), None)
        if not self._shelves[owner]:
            del self._shelves[owner], self._sizes[owner]

    def _arm(self) -> None:
        """Wake at the earliest deadline, unless there is a timer: it comes no later than that."""
        first = [next(iter(shelf)).deadline for shelf in self._shelves.values()]
        if first and (self._timer is None or self._timer.cancelled):
            wait = max(0.0, min(first) - self._clock.monotonic())
            self._timer = self._timers.call_later(wait, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._drop_expired()
        self._arm()
