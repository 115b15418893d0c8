"""Who prefills, starts and decodes next. Policy only: no tensors, no clock.

Continuous batching: finished sequences leave the batch and waiting ones join it at every step. A
job's prompt is prefilled once and its samples fork from it. First come, first served; memory is
reserved for a sequence's longest possible end, so nothing that runs is ever preempted.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinkex.engine.sequence import JobState, RunningSequence

_SMALLEST_ROW = 64


def row_capacity(tokens: int) -> int:
    """Give the size class of a cache row that holds `tokens`."""
    return max(_SMALLEST_ROW, 1 << (tokens - 1).bit_length())


class Scheduler:
    """The queues of one engine."""

    def __init__(self, *, max_running: int, prefill_tokens: int, cache_tokens: int) -> None:
        self._max_running = max_running
        self._prefill_tokens = prefill_tokens
        self._cache_tokens = cache_tokens
        self._reserved = 0
        self.waiting: deque[JobState] = deque()
        """Jobs whose prompt is not computed yet."""
        self.starting: deque[JobState] = deque()
        """Jobs with a computed prompt and samples left to start."""
        self.running: list[RunningSequence] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.waiting or self.starting or self.running)

    def add(self, state: JobState) -> None:
        """Queue a job."""
        self.waiting.append(state)

    def take_prefill(self) -> list[JobState]:
        """Take the jobs whose prompts to compute now, in order of arrival."""
        taken: list[JobState] = []
        tokens = 0
        slots = self._max_running - len(self.running) - sum(_left(s) for s in self.starting)
        promised = sum(row_capacity(s.length_limit) for s in self.starting)
        while self.waiting:
            state = self.waiting[0]
            alone = not (taken or self.running or self.starting)
            prompt_row = row_capacity(len(state.prompt))
            promised += row_capacity(state.length_limit)
            fits = slots > 0 and self._reserved + promised + prompt_row <= self._cache_tokens
            if not alone and not (fits and tokens + len(state.prompt) <= self._prefill_tokens):
                break
            taken.append(self.waiting.popleft())
            self._reserved += prompt_row
            tokens += len(state.prompt)
            slots -= state.job.num_samples
        self.starting.extend(taken)
        return taken

    def take_start(self) -> list[tuple[JobState, int]]:
        """Take the samples to start now: their jobs and indices. The job leaves after its last."""
        taken: list[tuple[JobState, int]] = []
        while self.starting:
            state = self.starting[0]
            cost = row_capacity(state.length_limit)
            room = len(self.running) + len(taken) < self._max_running
            fits = room and self._reserved + cost <= self._cache_tokens
            if not fits and (taken or self.running):
                break
            taken.append((state, state.started))
            state.started += 1
            self._reserved += cost
            if not _left(state):
                self.starting.popleft()
                self._reserved -= row_capacity(len(state.prompt))
        return taken

    def run(self, sequences: Iterable[RunningSequence]) -> None:
        """Add started sequences to the batch, next to others of the same adapter."""
        self.running.extend(sequences)
        self.running.sort(key=lambda s: id(s.state.weights))

    def finish(self, sequence: RunningSequence) -> None:
        """Take a sequence out of the batch."""
        self.running.remove(sequence)
        self._reserved -= row_capacity(sequence.state.length_limit)

    def drop(self, state: JobState) -> list[RunningSequence]:
        """Forget a job wherever it is; gives its sequences that were running."""
        if state in self.waiting:
            self.waiting.remove(state)
        if state in self.starting:
            self.starting.remove(state)
            self._reserved -= row_capacity(len(state.prompt))
        dropped = [s for s in self.running if s.state is state]
        for sequence in dropped:
            self.finish(sequence)
        return dropped


def _left(state: JobState) -> int:
    return state.job.num_samples - state.started
