"""Who prefills, starts and decodes next. Policy only: no tensors, no clock.

Continuous batching: finished sequences leave the batch and waiting ones join it at every step. A
job's prompt is computed once and its samples fork from it. Parties (an owner's jobs on one sampler)
take turns by tokens served (`fair_share`); the jobs of a party come in the order of their arrival.

Memory and a slot are held for an admitted job's first sample. Memory is reserved for a sequence's
longest possible end where that is near, and such a one runs to its end. Most samples end long
before the model's context does, so of a longer one `ahead_tokens` are reserved beyond what it has,
and more when it comes there. Where there is no more, an older sequence takes from the youngest that
may grow, which are preempted: they wait for memory like new jobs and go on where they were. Whoever
finds no room even so waits in its place. The oldest that may grow is never preempted, and what runs
beside it comes to an end; so every admitted job does.

A job too large for the room there is may be overtaken by smaller ones, but not for ever: after
`cache_tokens` of them, nothing more is admitted before it.

Since nothing that runs is stopped for a new job, an eighth more of slots and memory is there for
owners who have nothing running (half of it also for their samplers that have nothing running): they
need not wait for the end of another's long samples.
"""

from __future__ import annotations

from bisect import insort
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
    """The queues of one engine.

    Args:
        max_running: sequences that run at once.
        cache_tokens: tokens that may be reserved.
        ahead_tokens: tokens reserved for a sequence beyond those that it has, where it may come so
            far.
    """

    def __init__(self, *, max_running: int, cache_tokens: int, ahead_tokens: int) -> None:
        self._max_running = max_running
        self._cache_tokens = cache_tokens
        self._ahead_tokens = ahead_tokens
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
        self._in_need: RunningSequence | None = None
        """The oldest sequence that may grow, while it finds no room."""
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
            for state in [s for s in queue if s.slot_held]:
                self._start(state, grants)
                charged.append((state.party, state.max_tokens))
                self._shares.charge(*charged[-1])
        passed: list[JobState] = []
        while self._slots < self._max_running + self._max_running // _NEWCOMERS:
            chosen = self._next(passed)
            if chosen is None:
                break
            if self._in_need is not None and not chosen.promised:
                self._in_need.state.overtaken += self._row(chosen)
            if chosen.admitted:
                self._start(chosen, grants)
                charged.append((chosen.party, chosen.max_tokens))
            else:
                for waits in passed:
                    waits.overtaken += self._row(chosen)
                self._admit(chosen, grants)
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
        need = self._in_need
        if need is not None and not need.state.held and self._is_impatient(need.state):
            heads = [s for s in heads if s.promised]
        heads.sort(key=self._rank)
        patience_ends = any(self._is_impatient(s) for s in passed)
        for state in heads:
            if state in passed or (patience_ends and not state.admitted):
                continue
            if self._fits(state):
                return state
            passed.append(state)
            patience_ends = patience_ends or (not state.admitted and self._is_impatient(state))
        return None

    def _is_impatient(self, state: JobState) -> bool:
        return state.overtaken >= self._cache_tokens

    def _is_behind(self, party: Party) -> bool:
        """Whether the free slots are for samples of a party's earlier jobs."""
        if party in self._starting:
            return True
        owed = sum(len(s.to_start) - 1 for s in self._prefilling if s.party == party)
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

    def _row(self, state: JobState) -> int:
        """Give the tokens to reserve for the sample that a job starts next."""
        known = state.known_length(state.to_start[0])
        return row_capacity(min(state.length_limit, known + self._ahead_tokens))

    @property
    def _room(self) -> int:
        """Tokens of the cache that are not reserved; negative where newcomers have more."""
        return self._cache_tokens - self._reserved

    def _fits(self, state: JobState) -> bool:
        """Whether there is room to admit a job, or to start an admitted one's next sample."""
        if state.admitted:
            cost = 0 if state.promised else self._row(state)
        else:
            cost = self._row(state) + _prompt_row(state)
        room = self._limit(state, self._cache_tokens) - self._reserved
        return cost == 0 or self._reserved == 0 or cost <= room

    def _admit(self, state: JobState, grants: Grants) -> None:
        _leave_queue(self._waiting, state)
        state.promised, state.prompt_reserved = self._row(state), _prompt_row(state)
        self._reserved += state.promised + state.prompt_reserved
        self._count_slot(state, 1)
        state.admitted = state.slot_held = True
        state.overtaken = 0
        self._prefilling.append(state)
        grants.admitted.append(state)

    def _start(self, state: JobState, grants: Grants) -> None:
        if not state.promised:
            state.promised = self._row(state)
            self._reserved += state.promised
        if not state.slot_held:
            self._count_slot(state, 1)
        index = state.to_start.pop(0)
        state.reserved[index] = state.promised
        state.promised, state.slot_held = 0, False
        grants.starts.append((state, index))
        if not state.to_start:
            _leave_queue(self._starting, state)
            self._reserved -= state.prompt_reserved  # the last sample takes the prompt's row over
            state.prompt_reserved = 0

    def _withdraw(self, state: JobState) -> None:
        """Take an admitted job out of where it waits to go on, with all that was held for that."""
        if state in self._prefilling:
            self._prefilling.remove(state)
        elif state.to_start:
            _leave_queue(self._starting, state)
        self._reserved -= state.promised + state.prompt_reserved
        if state.slot_held:
            self._count_slot(state, -1)
        state.promised = state.prompt_reserved = 0
        state.admitted = state.slot_held = False

    def _wait_again(self, state: JobState) -> None:
        """Put a job that was let in before back among those that wait, by its arrival."""
        queue = self._waiting.setdefault(state.party, deque())
        insort(queue, state, key=lambda s: s.arrival)

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

    def charge_decode(self, sequences: Iterable[RunningSequence]) -> None:
        """Count one token for each of some sequences."""
        for party, count in Counter(s.state.party for s in sequences).items():
            self._shares.charge(party, count)

    def finish(self, sequence: RunningSequence) -> None:
        """Take a sequence out of the batch; its job is not admitted any more if it must wait."""
        freed = self._stop(sequence)
        state = sequence.state
        if state.to_start and not state.reserved and state.admitted and not state.promised:
            # Nothing of the job runs: so that it holds no memory in vain, its next sample is to be
            # sure of room, or all of it waits.
            row = self._row(state)
            if row <= max(freed, self._room) or not self._reserved:
                state.promised = row
                self._reserved += row
            else:
                self._withdraw(state)
                self._wait_again(state)
        if not state.to_start and not state.reserved:
            self._shares.leave(state.party)

    def _stop(self, sequence: RunningSequence) -> int:
        """Take a sequence from what runs; gives the tokens that were reserved for it."""
        self.running.remove(sequence)
        if sequence is self._in_need:
            self._in_need = None
        self._count_slot(sequence.state, -1)
        freed = sequence.state.reserved.pop(sequence.index)
        self._reserved -= freed
        return freed

    def drop(self, state: JobState) -> list[RunningSequence]:
        """Forget a job wherever it is; gives its sequences that were running."""
        if state.admitted:
            self._withdraw(state)
        else:
            _leave_queue(self._waiting, state)
        state.to_start.clear()
        state.preempted.clear()
        dropped = [s for s in self.running if s.state is state]
        for sequence in dropped:
            self.finish(sequence)
        if not dropped:
            self._shares.leave(state.party)
        return dropped

    # --- growth ---------------------------------------------------------------------------------

    def grow(self, sequences: Iterable[RunningSequence]) -> list[RunningSequence]:
        """Reserve more for those of some running sequences that are full, the oldest first.

        Those that find no room stay full.

        Returns:
            Sequences that were preempted for it. Their jobs are not admitted any more.
        """
        self._in_need = None
        preempted: list[RunningSequence] = []
        for sequence in sorted((s for s in sequences if s.is_full), key=lambda s: s.age):
            if sequence.index in sequence.state.reserved:  # not preempted for one before it
                preempted += self._extend(sequence)
        return preempted

    def _extend(self, sequence: RunningSequence) -> list[RunningSequence]:
        """Reserve the next size class for a sequence, if there is room or others can make it."""
        state, preempted = sequence.state, []
        row = row_capacity(len(state.prompt) + len(sequence.tokens))
        more = row - state.reserved[sequence.index]
        if more > self._room:
            growing = [s for s in self.running if s is not sequence and _may_grow(s)]
            # Who waits for a slow reader would hold up the others for as long as that takes.
            yielding = [s for s in growing if s.state.held or s.age > sequence.age]
            yielding.sort(key=lambda s: (s.state.held, s.age))
            is_oldest = len(yielding) == len(growing)
            gain = sum(s.state.reserved[s.index] for s in yielding)
            if not is_oldest and more > self._room + gain:
                return []
            while yielding and more > self._room:
                preempted.append(yielding.pop())
                self._preempt(preempted[-1])
            alone = self._reserved == state.reserved[sequence.index] + state.prompt_reserved
            if more > self._room and not alone:
                self._in_need = sequence
                return preempted
        state.overtaken = 0
        state.reserved[sequence.index] = row
        self._reserved += more
        return preempted

    def _preempt(self, sequence: RunningSequence) -> None:
        """Let a sequence wait again, and its job's other samples that have not started."""
        state = sequence.state
        self._stop(sequence)
        if state.admitted:
            self._withdraw(state)
            self._wait_again(state)
        insort(state.to_start, sequence.index)
        state.preempted[sequence.index] = sequence


def _may_grow(sequence: RunningSequence) -> bool:
    """Whether less than a sequence's longest possible end is reserved."""
    return sequence.state.reserved[sequence.index] < row_capacity(sequence.state.length_limit)


def _prompt_row(state: JobState) -> int:
    """Tokens reserved for the prompt beside its samples: the last sample takes its row over."""
    return row_capacity(len(state.prompt)) if len(state.to_start) > 1 else 0


def _leave_queue(queues: dict[Party, deque[JobState]], state: JobState) -> None:
    queue = queues[state.party]
    queue.remove(state)
    if not queue:
        del queues[state.party]
