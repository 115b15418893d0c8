"""What was sampled, kept for training: tokens and log-probabilities by sequence id.

Owns which sequences are kept, for whom, how long, and how many bytes of them. What training does
with them is `provenance`'s. They are in memory, and in the database for a server that is started
again; a recording goes with its session.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from tinkex._clock import Clock
    from tinkex._timers import Timer, Timers
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


class Keeper(Protocol):
    """Keeps recordings where they outlive the process: the journal."""

    def record(
        self, request_id: str, *, session_id: str, owner: str, write: Callable[[], bytes]
    ) -> None:
        """Keep one; `write` gives its bytes."""

    def drop_recording(self, request_id: str) -> None:
        """Erase one."""


@dataclass(slots=True, eq=False)
class _Request:
    """All sequences of one sample request; they come and go together."""

    request_id: str
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
        self.keeper: Keeper | None = None
        """Keeps what is in memory here; None while nothing is to be kept."""
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
        self,
        request_id: str,
        owner: str,
        session_id: str,
        prompt: ModelInput,
        response: SampleResponse,
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
        if self.keeper is not None:  # first, as it may be dropped at once for lack of room
            self.keeper.record(
                request_id,
                session_id=session_id,
                owner=owner,
                write=lambda: _write(context, sequences),
            )
        self._add(request_id, owner, session_id, context, sequences)

    def restore(self, request_id: str, owner: str, session_id: str, body: bytes) -> None:
        """Take back what an earlier process recorded.

        Raises:
            ValueError, KeyError: the bytes are no recording.
        """
        self._add(request_id, owner, session_id, *_read(body))

    def _add(
        self,
        request_id: str,
        owner: str,
        session_id: str,
        context: NDArray[np.int32],
        sequences: Mapping[str, RecordedSequence],
    ) -> None:
        arrays = [context, *(a for s in sequences.values() for a in (s.tokens, s.logprobs))]
        size = sum(a.nbytes for a in arrays) + OVERHEAD_BYTES * (1 + len(sequences))
        deadline = self._clock.monotonic() + self._ttl_s
        request = _Request(request_id, owner, session_id, sequences, size, deadline)
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
        if self.keeper is not None:
            self.keeper.drop_recording(request.request_id)
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


def _write(context: NDArray[np.int32], sequences: Mapping[str, RecordedSequence]) -> bytes:
    """Write the sequences of a request: NumPy's own archive, names beside the arrays."""
    arrays: dict[str, NDArray[Any]] = {"prompt": context, "names": np.array(list(sequences))}
    for index, one in enumerate(sequences.values()):
        arrays[f"tokens{index}"], arrays[f"logprobs{index}"] = one.tokens, one.logprobs
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _read(body: bytes) -> tuple[NDArray[np.int32], dict[str, RecordedSequence]]:
    with np.load(io.BytesIO(body), allow_pickle=False) as archive:
        context = archive["prompt"]
        return context, {
            str(name): RecordedSequence(
                context, archive[f"tokens{index}"], archive[f"logprobs{index}"]
            )
            for index, name in enumerate(archive["names"])
        }
