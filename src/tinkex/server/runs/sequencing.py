"""The order of one training run's requests, by sequence id.

Owns which request may run next and what becomes of those that an absent one holds back. Pure: time
comes in through `arm` and `disarm`, the requests go out through `release` and `abandon`.

Clients send the chunks of a call in parallel, the first one last, so ids arrive out of order. They
run in order from 1. An id that never comes (the client's request failed on the way) blocks until
the gap time-out; then everything held is abandoned and the run goes on after it: running only a
part of a batch, or an optimiser step without all its chunks, would train silently on the wrong
thing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from tinkex.errors import EngineError, InputError, TinkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

FIRST_SEQ_ID = 1


class Sequencer(Generic[T]):
    """Releases requests in the order of their ids.

    Args:
        release: takes a request whose turn it is.
        abandon: takes a request that will never run, and why.
        arm: starts the gap time-out; at its end the owner calls `skip_gap`.
        disarm: stops the gap time-out.
        max_held: requests that may wait for an earlier one.
    """

    def __init__(
        self,
        *,
        release: Callable[[T], None],
        abandon: Callable[[T, TinkerError], None],
        arm: Callable[[], None],
        disarm: Callable[[], None],
        max_held: int,
    ) -> None:
        self._release = release
        self._abandon = abandon
        self._arm = arm
        self._disarm = disarm
        self._max_held = max_held
        self._held: dict[int, T] = {}
        self.next_seq_id = FIRST_SEQ_ID
        """The id that runs next."""

    @property
    def held(self) -> int:
        """Requests waiting for an earlier one."""
        return len(self._held)

    @property
    def waiting(self) -> Iterable[T]:
        """The requests that wait for an earlier one."""
        return self._held.values()

    def offer(self, seq_id: int, request: T) -> None:
        """Take a request: release it now, hold it, or abandon it.

        The caller has removed repetitions: an id comes here once.
        """
        if seq_id < self.next_seq_id or seq_id in self._held:
            self._abandon(request, self._too_late(seq_id))
            return
        if seq_id != self.next_seq_id and len(self._held) >= self._max_held:
            self._abandon(
                request,
                EngineError(
                    f"{len(self._held)} requests of this run already wait for seq_id "
                    f"{self.next_seq_id}, which has not arrived. Send that one, then retry."
                ),
            )
            return
        was_blocked = bool(self._held)
        self._held[seq_id] = request
        advanced = self._release_ready()
        if self._held and (advanced or not was_blocked):
            self._disarm()
            self._arm()
        elif not self._held:
            self._disarm()

    @property
    def after_gap(self) -> int | None:
        """The id that `skip_gap` goes on with; None while nothing waits for a missing one."""
        return max(self._held) + 1 if self._held else None

    def go_on_with(self, seq_id: int) -> None:
        """Go on with an id, as was decided before; what is held below it may not know of that."""
        self._disarm()
        self._give_up(seq_id, "in time")
        self._release_ready()
        if self._held:
            self._arm()

    def skip_gap(self, waited_s: float) -> None:
        """Abandon everything that waits for the missing id, and go on after the last of it."""
        if self.after_gap is not None:
            self._give_up(self.after_gap, f"within {waited_s:g} s")

    def _give_up(self, next_seq_id: int, when: str) -> None:
        missing, self.next_seq_id = self.next_seq_id, next_seq_id
        for seq_id in sorted(one for one in self._held if one < next_seq_id):
            self._abandon(
                self._held.pop(seq_id),
                EngineError(
                    f"Request seq_id {seq_id} was not run: seq_id {missing} of the same run did "
                    f"not arrive {when}. Repeat the call; requests from seq_id "
                    f"{self.next_seq_id} on run again."
                ),
            )

    def close(self, error: TinkerError) -> None:
        """Abandon everything held: the run has ended."""
        held, self._held = self._held, {}
        self._disarm()
        for seq_id in sorted(held):
            self._abandon(held[seq_id], error)

    def _release_ready(self) -> bool:
        start = self.next_seq_id
        while (request := self._held.pop(self.next_seq_id, None)) is not None:
            self.next_seq_id += 1
            self._release(request)
        return self.next_seq_id != start

    def _too_late(self, seq_id: int) -> TinkerError:
        if seq_id < FIRST_SEQ_ID:
            return InputError(f"seq_id is {seq_id}: the ids of a run start at {FIRST_SEQ_ID}.")
        return EngineError(
            f"Request seq_id {seq_id} was not run: this run already went on to seq_id "
            f"{self.next_seq_id}, because this id arrived too late or its result was dropped. "
            "Repeat the call with a new seq_id."
        )
