"""Who prefills, starts and decodes next. Policy only: no tensors, no clock.

Continuous batching: finished sequences leave the batch and waiting ones join it at every step. A
job's prompt is computed once and its samples fork from it. Parties (an owner's jobs on one sampler)
take turns by tokens served (`fair_share`); the jobs of a party come in the order of their arrival.

Memory and a slot are held for an admitted job's first sample, and memory is reserved for a
sequence's longest possible end, so nothing that runs is ever preempted and every admitted job comes
to its end. A job too large for the room there is may be overtaken by smaller ones, but not for
ever: after `cache_tokens` of them, nothing more is admitted before it.

Since what runs is not stopped for anybody, an eighth more of slots and memory is there for owners
who have nothing running (half of it also for their samplers that have nothing running): they need
not wait for the end of another's long samples.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkex.engine.attention.size_classes import row_capacity
from tinkex.engine.sampling.fair_share import FairShares

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinkex.engine.sampling.fair_share import Party
    from tinkex.engine.sampling.sequence import JobState, RunningSequence

_NEWCOMERS = 8
"""Slots and memory are larger by one part in this for those who have nothing running."""


@dataclass(frozen=True, slots=True)
class Grants:
    """What may begin now."""

    admitted: list[JobState] = field(default_factory=list)
    """Jobs whose prompts may be computed."""
    starts: list[tuple[JobState, int]] = field(default_factory=list)
    """Samples to start: their jobs and indices."""


class Scheduler:
    """The queues of one engine."""

    def __init__(self, *, max_running: int, cache_tokens: int) -> None:
        self._max_running = max_running
        self._cache_tokens = cache_tokens
        self._reserved = 0
        self._slots = 0
        """Running sequences, and those held for first samples."""
        self._slots_of: Counter[Party | str] = Counter()
        """The same for each party and each owner."""
        self._shares = FairShares()
        self._arrivals = 0
        self._waiting: dict[Party, deque[JobState]] = {}
        """Jobs not admitted yet."""
        self._prefilling: list[JobState] = []
        """Admitted jobs whose prompt is not computed."""
        self._starting: dict[Party, deque[JobState]] = {}
        """Jobs with a computed prompt and samples left to start."""
        self._decoding: Counter[Party] = Counter()
        """Running sequences of each party."""
        self.running: list[RunningSequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._waiting or self._prefilling or self._starting or self.running)

    @property
    def free_tokens(self) -> int:
        """Tokens of the cache that no admitted job has reserved."""
        return max(0, self._cache_tokens - self._reserved)

    def add(self, state: JobState) -> None:
        """Queue a job."""
        state.arrival = self._arrivals
        self._arrivals += 1
        self._shares.enter(state.party)
        self._waiting.setdefault(state.party, deque()).append(state)

    # --- admission and start --------------------------------------------------------------------

    def grant(self) -> Grants:
        """Admit jobs and start samples, as far as slots and memory go.

        A slot goes to the party served least; what it is granted here counts as served until the
        end of the call, so that several free slots are shared out too.
        """
        grants = Grants()
        charged: list[tuple[Party, int]] = []
        for queue in list(self._starting.values()):
            for state in [s for s in queue if s.started == 0]:
                self._start(state, grants)  # its slot and memory are held
                charged.append((state.party, state.max_tokens))
                self._shares.charge(*charged[-1])
        passed: list[JobState] = []
        while self._slots < self._max_running + self._max_running // _NEWCOMERS:
            chosen = self._next(passed)
            if chosen is None:
                break
            if chosen.admitted:
                self._start(chosen, grants)
                charged.append((chosen.party, chosen.max_tokens))
            else:
                self._admit(chosen, grants)
                for waits in passed:
                    waits.overtaken += _row(chosen)
                charged.append((chosen.party, len(chosen.prompt) + chosen.max_tokens))
            self._shares.charge(*charged[-1])
        for party, tokens in charged:
            self._shares.charge(party, -tokens)
        return grants

    def _next(self, passed: list[JobState]) -> JobState | None:
        """Find the job that gets the next slot; those that do not fit go to `passed`."""
        heads = [queue[0] for party, queue in self._waiting.items() if not self._is_behind(party)]
        heads += [queue[0] for queue in self._starting.values()]
        heads = [s for s in heads if self._slots < self._limit(s, self._max_running)]
        heads.sort(key=self._rank)
        patience_ends = any(s.overtaken >= self._cache_tokens for s in passed)
        for state in heads:
            if state in passed or (patience_ends and not state.admitted):
                continue
            if self._fits(state):
                return state
            passed.append(state)
            patience_ends = patience_ends or (
                not state.admitted and state.overtaken >= self._cache_tokens
            )
        return None

    def _is_behind(self, party: Party) -> bool:
        """Whether the free slots are for samples of a party's earlier jobs."""
        if party in self._starting:
            return True
        owed = sum(_left(s) - 1 for s in self._prefilling if s.party == party)
        return owed > 0 and self._slots + owed >= self._max_running

    def _limit(self, state: JobState, limit: int) -> int:
        """Give how far slots or memory may be taken for a job, of `limit` for all."""
        if not self._slots_of[state.job.owner]:
            return limit + limit // _NEWCOMERS
        if not self._slots_of[state.party]:
            return limit + limit // _NEWCOMERS // 2
        return limit

    def _rank(self, state: JobState) -> tuple[int, int, int]:
        return *self._shares.rank(state.party), state.arrival

    def _fits(self, state: JobState) -> bool:
        """Whether there is room to admit a job, or to start an admitted one's next sample."""
        if state.admitted:
            cost = 0 if state.promised else _row(state)
        else:
            cost = _row(state) + _prompt_row(state)
        room = self._limit(state, self._cache_tokens) - self._reserved
        return cost == 0 or self._reserved == 0 or cost <= room

    def _admit(self, state: JobState, grants: Grants) -> None:
        _leave_queue(self._waiting, state)
        self._reserved += _row(state) + _prompt_row(state)
        self._count_slot(state, 1)
        state.admitted = state.promised = True
        self._prefilling.append(state)
        grants.admitted.append(state)

    def _start(self, state: JobState, grants: Grants) -> None:
        grants.starts.append((state, state.started))
        if not state.promised:
            self._reserved += _row(state)
        if state.started:  # a slot was held for the first
            self._count_slot(state, 1)
        state.promised = False
        state.started += 1
        state.unfinished += 1
        self._decoding[state.party] += 1
        if not _left(state):
            _leave_queue(self._starting, state)
            self._reserved -= _prompt_row(state)

    def _count_slot(self, state: JobState, change: int) -> None:
        self._slots += change
        for name in (state.party, state.job.owner):
            self._slots_of[name] += change
            if not self._slots_of[name]:
                del self._slots_of[name]

    # --- prompts --------------------------------------------------------------------------------

    def prefill_order(self) -> list[JobState]:
        """Give the jobs whose prompts are to be computed, whose turn it is first."""
        return sorted(self._prefilling, key=self._rank)

    def charge_prefill(self, state: JobState, tokens: int) -> None:
        """Count prompt tokens that are being computed."""
        self._shares.charge(state.party, tokens)

    def prompt_done(self, state: JobState) -> None:
        """Let the samples of a job start: its prompt is computed."""
        self._prefilling.remove(state)
        self._starting.setdefault(state.party, deque()).append(state)

    # --- running --------------------------------------------------------------------------------

    def run(self, sequences: Iterable[RunningSequence]) -> None:
        """Add started sequences to the batch, next to others of the same adapter."""
        self.running.extend(sequences)
        self.running.sort(key=lambda s: id(s.state.weights))

    def charge_decode(self) -> None:
        """Count one token for each running sequence."""
        for party, count in self._decoding.items():
            self._shares.charge(party, count)

    def finish(self, sequence: RunningSequence) -> None:
        """Take a sequence out of the batch."""
        self.running.remove(sequence)
        state = sequence.state
        self._count_slot(state, -1)
        state.unfinished -= 1
        self._decoding[state.party] -= 1
        if not self._decoding[state.party]:
            del self._decoding[state.party]
        if _left(state) and not state.unfinished:
            state.promised = True  # so that the next sample is sure to find room
        else:
            self._reserved -= _row(state)
        if not _left(state) and not state.unfinished:
            self._shares.leave(state.party)

    def drop(self, state: JobState) -> list[RunningSequence]:
        """Forget a job wherever it is; gives its sequences that were running."""
        if not state.admitted:
            _leave_queue(self._waiting, state)
        elif _left(state):
            if state in self._prefilling:
                self._prefilling.remove(state)
            else:
                _leave_queue(self._starting, state)
            self._reserved -= _prompt_row(state) + (_row(state) if state.promised else 0)
            if not state.started:
                self._count_slot(state, -1)
        dropped = [s for s in self.running if s.state is state]
        state.started = state.job.num_samples
        for sequence in dropped:
            self.finish(sequence)
        if not dropped:
            self._shares.leave(state.party)
        return dropped


def _left(state: JobState) -> int:
    return state.job.num_samples - state.started


def _row(state: JobState) -> int:
    """Tokens reserved for one sequence."""
    return row_capacity(state.length_limit)


def _prompt_row(state: JobState) -> int:
    """Tokens reserved for the prompt beside its samples: the last sample takes its row over."""
    return row_capacity(len(state.prompt)) if state.job.num_samples > 1 else 0


def _leave_queue(queues: dict[Party, deque[JobState]], state: JobState) -> None:
    queue = queues[state.party]
    queue.remove(state)
    if not queue:
        del queues[state.party]
