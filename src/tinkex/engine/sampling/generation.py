"""Sampling, a step at a time: schedule, run, postprocess.

Owns the life of sampling jobs. A step computes chunks of prompts, or decodes one token for all
running sequences; while there is both, steps alternate, so that a long prompt holds up no stream
for longer than one chunk. Nothing here waits. A job that fails takes no other with it: when the
computation fails for a batch, it is done again for each half, down to the job that fails alone.
What is done again gives the same bits, so whoever succeeds does not notice.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tinkex.engine.attempts import attempt
from tinkex.engine.attention.kv_cache import DecodeAttention, KVCache
from tinkex.engine.models.head import top_logprobs
from tinkex.engine.sampling.prefill import Prefill, segments_of
from tinkex.engine.sampling.prompt_scores import rows_to_score, score_prompt
from tinkex.engine.sampling.replay import Replay
from tinkex.engine.sampling.sampler import NextTokens, RowChoice, choose_tokens
from tinkex.engine.sampling.scheduler import Scheduler
from tinkex.engine.sampling.sequence import (
    JobState,
    RunningSequence,
    SampledToken,
    SampleFinished,
)
from tinkex.engine.sampling.uniform import UniformStream
from tinkex.errors import EngineError, TinkerError
from tinkex.types import SampledSequence, SampleResponse, TopkLogprobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from tinkex.engine.attention.kv_cache import KVRow
    from tinkex.engine.config import EngineConfig
    from tinkex.engine.models.runner import ModelRunner
    from tinkex.engine.sampling.prefill import PromptChunk

_NOT_FINITE = (
    "the model gave logits that are not finite; the adapter's weights may have diverged. Load an "
    "earlier checkpoint"
)


class Generator:
    """All sampling of one engine."""

    def __init__(self, runner: ModelRunner, config: EngineConfig) -> None:
        self._runner = runner
        self._cache = KVCache()
        self._prefill = Prefill(runner, self._cache, config)
        self._replay = Replay(runner, self._cache)
        self._prefill_tokens = config.prefill_tokens
        self._jobs: dict[str, JobState] = {}
        self._scheduler = Scheduler(
            max_running=config.max_running,
            cache_tokens=config.kv_cache_tokens,
            ahead_tokens=config.kv_ahead_tokens,
        )
        self._decode_is_due = False
        self.served: dict[str, int] = {}
        """By job: tokens that the last step computed for it."""
        self.preemptions = 0
        """How often a sample gave its memory to an older one and was to be computed again."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._scheduler.has_work

    @property
    def prefilled_tokens(self) -> int:
        """Prompt tokens computed since the engine was made."""
        return self._prefill.prefilled_tokens

    @property
    def reused_tokens(self) -> int:
        """Prompt tokens taken from the prefix cache instead of computing them."""
        return self._prefill.reused_tokens

    def sweep(self) -> None:
        """Give back what is kept of prompts for weights that are gone."""
        self._prefill.prefix.sweep()

    def has_job(self, job_id: str) -> bool:
        """Say whether a job of this name is not finished."""
        return job_id in self._jobs

    def weights_in_use(self) -> set[int]:
        """Give the ids of the weights that unfinished jobs sample from."""
        return {id(state.weights) for state in self._jobs.values()}

    def add(self, state: JobState) -> None:
        """Let a checked job in."""
        self._jobs[state.job.job_id] = state
        self._scheduler.add(state)

    def hold(self, job_id: str, *, held: bool) -> None:
        """Let a job's samples wait, or go on; nothing if it is not there."""
        state = self._jobs.get(job_id)
        if state is not None:
            state.held = held

    @torch.inference_mode()
    def cancel(self, job_id: str) -> None:
        """Forget a job, if there."""
        state = self._jobs.get(job_id)
        if state is not None:
            self._discard(state)

    @torch.inference_mode()
    def step(self) -> list[SampleFinished]:
        """Compute chunks of prompts, or decode one token; give the jobs that ended."""
        self.sweep()
        self.served = {}
        finished = self._admit_and_start()
        waiting = self._scheduler.prefill_order()
        behind = [s for s in self._scheduler.running if s.behind]
        running = [s for s in self._scheduler.running if _is_due(s)]
        if (waiting or behind) and not (self._decode_is_due and running):
            self._decode_is_due = True
            if waiting:
                finished += self._compute_prompts(waiting)
            finished += self._catch_up(behind)
            return finished + self._admit_and_start()
        self._decode_is_due = False
        running = self._with_room(running)
        if running:
            self._scheduler.charge_decode(running)
            self.served = Counter(s.state.job.job_id for s in running)
            finished += self._spared(_jobs_of(running), self._decode)
        return finished

    def _spared(
        self,
        states: Iterable[JobState],
        work: Callable[[Sequence[JobState]], list[SampleFinished] | None],
    ) -> list[SampleFinished]:
        """Run `work` on all `states`; when the computation fails, on halves, and fail who is alone.

        `work` may be run again on states that it was done for, and must leave them alone then.
        """
        left = [state for state in states if self._alive(state)]
        if not left:
            return []
        found = attempt("sampling computation", lambda: work(left) or [])
        if not isinstance(found, EngineError):
            return found
        if len(left) == 1 and self._prefill.prefix.copied_tokens:
            self._prefill.prefix.shrink(0)  # it may be memory that is short
            return self._spared(left, work)
        if len(left) == 1:
            return [self._fail(left[0], found)]
        half = len(left) // 2
        return self._spared(left[:half], work) + self._spared(left[half:], work)

    def _alive(self, state: JobState) -> bool:
        return self._jobs.get(state.job.job_id) is state

    # --- prompts --------------------------------------------------------------------------------

    def _compute_prompts(self, waiting: Sequence[JobState]) -> list[SampleFinished]:
        """Compute chunks of the prompts that wait, whose turn it is first."""
        finished: list[SampleFinished] = []
        for state in waiting:
            if state.prompt_left:
                finished += self._spared([state], lambda one: self._prefill.reuse(one[0]))
        chunks = self._prefill.plan([s for s in waiting if self._alive(s)])
        for chunk in chunks:
            self._scheduler.charge_prefill(chunk.state, chunk.tokens)
            self.served[chunk.state.job.job_id] = chunk.tokens
        finished += self._spared([c.state for c in chunks], partial(self._run_chunks, chunks))
        computed = [s for s in waiting if self._alive(s) and not s.prompt_left]
        return finished + self._prompts_done(computed)

    def _run_chunks(
        self, chunks: Sequence[PromptChunk], states: Sequence[JobState]
    ) -> list[SampleFinished]:
        """Compute the chunks of some jobs; what a failed attempt left in a row is overwritten."""
        wanted = {id(state) for state in states}
        left = [c for c in chunks if id(c.state) in wanted and c.start == c.state.computed]
        return self._diverged(self._prefill.run(left)) if left else []

    def _diverged(self, states: Sequence[JobState]) -> list[SampleFinished]:
        return [self._fail(state, EngineError(_NOT_FINITE)) for state in states]

    def _prompts_done(self, states: Sequence[JobState]) -> list[SampleFinished]:
        """Compute what comes first after whole prompts, and what was asked about them."""
        fresh = sorted((s for s in states if s.first_logits is None), key=lambda s: id(s.weights))
        finished = self._spared(fresh, self._first_logits)
        diverged = [s for s in fresh if self._alive(s) and s.first_logits is None]
        return finished + self._diverged(diverged) + self._score_prompts(states)

    def _first_logits(self, states: Sequence[JobState]) -> None:
        """Keep the logits after each prompt; none where they are not finite."""
        logits = self._runner.head.logits(
            torch.stack([s.last_hidden for s in states]),
            segments_of([s.weights for s in states], [1] * len(states)),
        )
        finite = logits.isfinite().all(dim=1).tolist()
        for state, row, good in zip(states, logits, finite, strict=True):
            state.first_logits = row if good else None

    def _score_prompts(self, states: Sequence[JobState]) -> list[SampleFinished]:
        """Compute what was asked about whole prompts, as much as one product with the unembedding.

        With a large vocabulary that costs more than the prompts themselves. How a prompt is cut
        depends on nothing else, and so do its bits.
        """
        finished: list[SampleFinished] = []
        room = most = self._runner.head.chunk_rows
        for state in states:
            rows = min(rows_to_score(state), most)
            if rows > room or not self._alive(state):
                continue
            room -= rows
            if rows:
                job_id = state.job.job_id
                self._scheduler.charge_prefill(state, rows)
                self.served[job_id] = self.served.get(job_id, 0) + rows
            finished += self._spared([state], partial(self._score_prompt, rows))
        return finished

    def _score_prompt(self, rows: int, states: Sequence[JobState]) -> None:
        (state,) = states
        score_prompt(state, rows, self._runner.head)
        if not rows_to_score(state):
            state.last_hidden, state.hidden = None, []
            self._scheduler.prompt_done(state)

    # --- start and decode -----------------------------------------------------------------------

    def _admit_and_start(self) -> list[SampleFinished]:
        """Let jobs in and start samples, as the scheduler grants."""
        finished: list[SampleFinished] = []
        while True:
            grants = self._scheduler.grant()
            if not grants.admitted and not grants.starts:
                return finished
            for state in grants.admitted:
                finished += self._spared([state], lambda one: self._prefill.open(one[0]))
            self._prefill.prefix.shrink(self._scheduler.free_tokens)
            admitted = [s for s in grants.admitted if self._alive(s)]
            finished += self._prompts_done([s for s in admitted if not s.prompt_left])
            if grants.starts:
                finished += self._start_samples(grants.starts)

    def _start_samples(self, taken: Sequence[tuple[JobState, int]]) -> list[SampleFinished]:
        """Fork samples from computed prompts and choose their first tokens."""
        started = [_sequence_of(s, i) for s, i in taken]
        self._scheduler.run(started)
        for sequence in started:
            sequence.state.sequences.append(sequence)
        return self._spared(
            _jobs_of(started), lambda states: self._start(_sequences_of(started, states))
        )

    def _start(self, started: Sequence[RunningSequence]) -> list[SampleFinished]:
        for sequence in started:
            state = sequence.state
            if sequence.row is not None:
                continue
            assert state.prompt_row is not None
            if state.to_start or any(_lacks_row(s) for s in state.sequences if s is not sequence):
                sequence.row = self._cache.fork(state.prompt_row)
            else:  # the last takes the prompt's own row over
                sequence.row, state.prompt_row = state.prompt_row, None
        finished: list[SampleFinished] = []
        fresh = [s for s in started if not s.is_under_way]
        if fresh:
            logits = torch.stack([s.state.first_logits for s in fresh])
            finished += self._append_tokens(fresh, logits)
        for sequence in started:
            if sequence.is_under_way and self._alive(sequence.state):
                self._check_given(sequence)
                if sequence.stop_reason is not None:
                    finished += self._finish(sequence)
            if sequence.state.prompt_row is None:
                sequence.state.first_logits = None
        return finished

    def _catch_up(self, behind: Sequence[RunningSequence]) -> list[SampleFinished]:
        """Feed samples the tokens that they came with: as many as of prompts in one step."""
        finished: list[SampleFinished] = []
        budget = self._prefill_tokens
        for sequence in behind:
            count = min(sequence.behind, budget)
            if not count or not self._alive(sequence.state):
                continue
            budget -= count
            job_id = sequence.state.job.job_id
            self.served[job_id] = self.served.get(job_id, 0) + count
            work = partial(self._feed, sequence, count)
            finished += self._spared([sequence.state], work)
        return finished

    def _feed(self, sequence: RunningSequence, count: int, _: Sequence[JobState]) -> None:
        self._replay.run(sequence, count)

    def _with_room(self, running: Sequence[RunningSequence]) -> list[RunningSequence]:
        """Reserve what sequences outgrow; gives those that have room for their next token."""
        for sequence in self._scheduler.grow(running):
            state = sequence.state
            sequence.resumed = True
            state.sequences.remove(sequence)
            self._free(sequence)
            self._close_prompt(state)
            self.preemptions += 1
        self._prefill.prefix.shrink(self._scheduler.free_tokens)
        return [s for s in running if s.row is not None and not s.is_full]

    def _decode(self, states: Sequence[JobState]) -> list[SampleFinished]:
        """Feed each running sequence of some jobs its newest token and choose the next."""
        running = _sequences_of(self._scheduler.running, states)
        running = [s for s in running if _is_due(s) and not s.is_full]
        lengths = [0 if s.row is None else s.row.length for s in running]
        try:
            return self._decode_step(running)
        except BaseException:
            for sequence, length in zip(running, lengths, strict=True):
                if sequence.row is not None:
                    sequence.row.length = length
            raise

    def _decode_step(self, running: Sequence[RunningSequence]) -> list[SampleFinished]:
        device = self._runner.device
        for sequence in running:
            assert sequence.row is not None
            sequence.row = self._cache.make_room(sequence.row)
        # By adapter, then in the order of the cache, so that little need be gathered. A row's bits
        # do not tell.
        order = {id(s.state.weights): s.state.weights for s in running}
        places = {key: self._runner.adapter_place(weights) for key, weights in order.items()}
        running = sorted(running, key=lambda s: (places[id(s.state.weights)], _row_of(s).place))
        rows = [_row_of(sequence) for sequence in running]
        extra = self._runner.filler(len(rows), order.values())
        ids = torch.tensor([s.tokens[-1] for s in running] + [0] * extra, device=device)
        positions = torch.tensor([row.length for row in rows] + [0] * extra, device=device)
        adapters = self._runner.stacked([s.state.weights for s in running], len(ids))
        hidden = self._runner.hidden(
            ids, positions, DecodeAttention(rows, device), adapters, live=len(rows)
        )
        logits = self._runner.head.logits(hidden, adapters, live=len(rows))[: len(rows)]
        return self._append_tokens(running, logits)

    def _append_tokens(
        self, sequences: Sequence[RunningSequence], logits: Tensor
    ) -> list[SampleFinished]:
        """Choose each sequence's next token from its row of logits [n, V]; end what is done."""
        choices = []
        for s in sequences:
            rule = s.state.rule
            if s.uniform is None:
                s.uniform = s.uniforms.draw()
            choices.append(RowChoice(rule.temperature, rule.top_k, rule.top_p, s.uniform))
        next_tokens = NextTokens(logits)
        failed = (~next_tokens.finite).tolist()
        if any(failed):
            next_tokens.replace(~next_tokens.finite)
        tokens = choose_tokens(next_tokens, choices)
        logprobs = next_tokens.logprobs(tokens).tolist()
        topk = self._topk(sequences, next_tokens.logits)
        # First of all: a row that closes may move one of theirs, and would leave what is not finite
        # where that lay.
        bad = {id(s.state): s.state for s, fails in zip(sequences, failed, strict=True) if fails}
        finished = self._diverged(list(bad.values()))
        for i, (sequence, token) in enumerate(zip(sequences, tokens.tolist(), strict=True)):
            if not self._alive(sequence.state):
                continue  # a sample of its job failed
            sequence.uniform = None
            sequence.tokens.append(token)
            sequence.logprobs.append(logprobs[i])
            job, likeliest = sequence.state.job, None
            if topk is not None and (k := job.topk_sample_logprobs):
                likeliest = topk[1][i, :k].copy(), topk[0][i, :k].copy()
                sequence.topk.append(likeliest)
            self._check_end(sequence)
            if job.on_token is not None:
                told = None if likeliest is None else (likeliest[0].tolist(), likeliest[1].tolist())
                reason = sequence.stop_reason
                job.on_token(SampledToken(sequence.index, token, logprobs[i], told, reason))
            if sequence.stop_reason is not None:
                finished += self._finish(sequence)
        return finished

    @staticmethod
    def _topk(
        sequences: Sequence[RunningSequence], logits: Tensor
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]] | None:
        k = max(s.state.job.topk_sample_logprobs for s in sequences)
        if k == 0:
            return None
        values, ids = top_logprobs(logits, k)
        return values.cpu().numpy(), ids.to(torch.int32).cpu().numpy()

    @staticmethod
    def _check_end(sequence: RunningSequence) -> None:
        if sequence.state.rule.stop.hit(sequence.tokens):
            sequence.stop_reason = "stop"
        elif len(sequence.tokens) >= sequence.state.max_tokens:
            sequence.stop_reason = "length"

    def _check_given(self, sequence: RunningSequence) -> None:
        """Find out whether a sample had come to its end already."""
        if sequence.index in sequence.state.job.ended:
            sequence.stop_reason = "stop"
        else:
            self._check_end(sequence)

    # --- ends -----------------------------------------------------------------------------------

    def _finish(self, sequence: RunningSequence) -> list[SampleFinished]:
        """End one sequence, and its job with the last."""
        self._scheduler.finish(sequence)
        self._free(sequence)
        state = sequence.state
        if not state.admitted:
            self._close_prompt(state)
        done = [s for s in state.sequences if s.stop_reason is not None]
        if len(done) < state.job.num_samples:
            return []
        del self._jobs[state.job.job_id]
        response = _response(state)
        state.sequences.clear()  # they know the job too: a ring, which would keep weights alive
        return [SampleFinished(state.job.job_id, response, None)]

    def _fail(self, state: JobState, error: TinkerError) -> SampleFinished:
        self._discard(state, scrub=True)
        return SampleFinished(state.job.job_id, None, error)

    def _discard(self, state: JobState, *, scrub: bool = False) -> None:
        """Take a job out of everything; `scrub` its rows when they may hold NaN."""
        del self._jobs[state.job.job_id]
        for sequence in self._scheduler.drop(state):
            self._free(sequence, scrub=scrub)
        self._close_prompt(state, scrub=scrub)
        state.sequences.clear()

    def _close_prompt(self, state: JobState, *, scrub: bool = False) -> None:
        """Free a prompt's row, if there is one: what is still to start computes it again."""
        if state.prompt_row is not None:
            row, state.prompt_row = state.prompt_row, None
            self._prefill.close(row, self._scheduler.free_tokens, scrub=scrub)
        state.computed, state.last_hidden, state.first_logits = 0, None, None

    def _free(self, sequence: RunningSequence, *, scrub: bool = False) -> None:
        if sequence.row is not None:
            self._prefill.close(sequence.row, self._scheduler.free_tokens, scrub=scrub)
            sequence.row = None


def _is_due(sequence: RunningSequence) -> bool:
    """Whether a sequence is to get its next token, if there is room."""
    return not sequence.behind and not sequence.state.held


def _lacks_row(sequence: RunningSequence) -> bool:
    """Whether a sample is still to start from its prompt's row."""
    return sequence.row is None and sequence.stop_reason is None


def _sequence_of(state: JobState, index: int) -> RunningSequence:
    preempted = state.preempted.pop(index, None)
    if preempted is not None:
        return preempted
    given = list(state.job.resume[index]) if state.job.resume else []
    uniforms = UniformStream(state.rule.seed, index, len(given))
    return RunningSequence(state, index, uniforms, tokens=given, given=len(given))


def _jobs_of(sequences: Iterable[RunningSequence]) -> list[JobState]:
    return list({id(s.state): s.state for s in sequences}.values())


def _sequences_of(
    sequences: Iterable[RunningSequence], states: Sequence[JobState]
) -> list[RunningSequence]:
    wanted = {id(state) for state in states}
    return [s for s in sequences if id(s.state) in wanted]


def _row_of(sequence: RunningSequence) -> KVRow:
    assert sequence.row is not None
    return sequence.row


def _response(state: JobState) -> SampleResponse:
    job, scores = state.job, state.scores
    assert scores is not None
    names = job.sequence_ids or [f"{job.job_id}:{i}" for i in range(job.num_samples)]
    return SampleResponse(
        sequences=[
            _sampled(s, names[s.index]) for s in sorted(state.sequences, key=lambda s: s.index)
        ],
        prompt_logprobs_np=scores.logprobs,
        topk_prompt_logprobs_np=scores.topk,
        target_prompt_logprobs=scores.targets,
        prompt_cache_hit_tokens=state.reused,
        prompt_alt_tokens=scores.alternatives,
    )


def _sampled(sequence: RunningSequence, name: str) -> SampledSequence:
    assert sequence.stop_reason is not None
    new = sequence.tokens[sequence.given :]
    topk = None
    if sequence.topk:
        ids, values = zip(*sequence.topk, strict=True)
        topk = (np.stack(ids), np.stack(values))
    return SampledSequence(
        stop_reason=sequence.stop_reason,
        sequence_id=name,
        tokens_np=np.array(new, dtype=np.int32),
        logprobs_np=np.array(sequence.logprobs, dtype=np.float32),
        topk_logprobs_np=_topk_record(topk),
    )


def _topk_record(
    arrays: tuple[NDArray[np.int32], NDArray[np.float32]] | None,
) -> TopkLogprobs | None:
    return None if arrays is None else TopkLogprobs(token_ids=arrays[0], logprobs=arrays[1])
