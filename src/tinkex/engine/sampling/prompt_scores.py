"""What a sampling job asks about its prompt: log-probabilities, alternatives, draws.

Position 0 of a prompt has no prediction; the hidden state at position i, a row here, predicts
position i + 1. A product with the unembedding may cost more than all layers, so rows are scored a
few at a time. Owns the arithmetic; when is `generation`'s matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tinkex.engine.sampling.sampler import NextTokens, draw_alternatives
from tinkex.engine.sampling.uniform import UniformStream
from tinkex.types import PromptAltTokens, TensorData, TopkLogprobs
from tinkex.types.sampling import EMPTY_TOPK_LOGPROB

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from tinkex.engine.models.head import Head
    from tinkex.engine.sampling.sequence import JobState, SampleJob

PROMPT_STREAM = 2**64 - 1
"""The sample number of the uniforms that draw alternatives; no sample has it."""
_CHUNK_ROWS = 128


def first_wanted(job: SampleJob, length: int) -> int:
    """Give the first position of a prompt whose hidden state `score_prompt` needs; length: none."""
    if job.target_prompt_logprobs is not None or job.prompt_alt_tokens_k:
        return 0
    if job.prompt_logprobs or job.topk_prompt_logprobs:
        first = _first_scored(job, length)
        return first - 1 if first < length else length
    return length


def rows_to_score(state: JobState) -> int:
    """Give how many rows of a job's prompt are not scored yet."""
    done = state.wanted_from if state.scores is None else state.scores.next_row
    return max(0, len(state.prompt) - 1 - done)


def score_prompt(state: JobState, count: int, head: Head) -> None:
    """Score the next rows of a prompt that is computed; what fails may be done again.

    Args:
        state: the job; its `scores` are made with the first rows.
        count: how many, at most `rows_to_score`.
        head: the unembedding.
    """
    if state.scores is None:
        state.scores = PromptScores(state)
    if not count:
        return
    if len(state.hidden) > 1:
        state.hidden = [torch.cat(state.hidden)]
    at = state.scores.next_row - state.wanted_from
    state.scores.add(state.hidden[0][at : at + count], head)


class PromptScores:
    """What is found about one job's prompt of T tokens; whole when all rows were added."""

    def __init__(self, state: JobState) -> None:
        job, length = state.job, len(state.prompt)
        self.next_row = state.wanted_from
        """The first row that was not added."""
        self.logprobs: NDArray[np.float32] | None = None
        """[T]: NaN where none was asked for."""
        self.topk: TopkLogprobs | None = None
        self._weights = state.weights
        self._first = _first_scored(job, length)
        self._targets = torch.from_numpy(state.prompt[:, None])
        self._asked = job.target_prompt_logprobs
        if job.prompt_logprobs:
            self.logprobs = np.full(length, np.nan, dtype=np.float32)
        if k := job.topk_prompt_logprobs:
            values = np.full((length, k), EMPTY_TOPK_LOGPROB, dtype=np.float32)
            self.topk = TopkLogprobs(np.zeros((length, k), dtype=np.int32), values)
        if self._asked is not None:
            self._cells, self._place = _cells(self._asked)
            self._scores = np.zeros(self._cells.shape, dtype=np.float32)
        self._draws: _Draws | None = None
        if job.prompt_alt_tokens_k:
            self._draws = _Draws(state, length - 1)

    @torch.no_grad()
    def add(self, hidden: Tensor, head: Head) -> None:
        """Score the rows that come next, by their hidden states [n, C]."""
        start, end = self.next_row, self.next_row + len(hidden)
        first = max(start, self._first - 1)
        if first < end and (self.logprobs is not None or self.topk is not None):
            self._add_own(hidden[first - start :], slice(first + 1, end + 1), head)
        if self._asked is not None and self._cells.size:
            cells = self._cells[start:end]
            targets = torch.tensor(cells.clip(min=0), device=hidden.device)
            found = head.logprobs(hidden, targets, self._weights).cpu().numpy()
            self._scores[start:end] = np.where(cells < 0, np.float32(0), found)
        if self._draws is not None:
            self._draws.add(hidden, slice(start, end), head)
        self.next_row = end

    def _add_own(self, hidden: Tensor, positions: slice, head: Head) -> None:
        """Score the prompt's own tokens at some positions, and the likeliest ones there."""
        if self.logprobs is not None:
            targets = self._targets[positions].to(hidden.device)
            found = head.logprobs(hidden, targets, self._weights)
            self.logprobs[positions] = found[:, 0].cpu().numpy()
        if self.topk is not None:
            k = self.topk.token_ids.shape[1]
            top, ids = head.topk_logprobs(hidden, k, self._weights)
            self.topk.token_ids[positions] = ids.cpu().numpy()
            self.topk.logprobs[positions] = top.cpu().numpy()

    @property
    def targets(self) -> TensorData | None:
        """Log-probabilities of the tokens asked for, in the request's shape; 0 where it has -1."""
        if self._asked is None:
            return None
        shape, sparse = list(self._asked.dimensions), self._asked.sparse_indices
        if sparse is None:
            return TensorData(self._scores.reshape(-1), "float32", shape)
        return TensorData(self._scores[self._place], "float32", shape, sparse[0], sparse[1])

    @property
    def alternatives(self) -> PromptAltTokens | None:
        """What was drawn for each row, if asked for."""
        return None if self._draws is None else self._draws.found


class _Draws:
    """Tokens drawn for each row of a prompt, independently and at the job's temperature."""

    def __init__(self, state: JobState, rows: int) -> None:
        k = state.job.prompt_alt_tokens_k
        uniforms = UniformStream(state.rule.seed, PROMPT_STREAM).first(rows * k)
        self._uniforms = torch.from_numpy(uniforms).view(rows, k)
        self._temperature = state.rule.temperature
        self._weights = state.weights
        self._tokens = np.zeros((rows, k), dtype=np.int64)
        self._logprobs = np.zeros((rows, k), dtype=np.float32)

    def add(self, hidden: Tensor, rows: slice, head: Head) -> None:
        """Draw for some rows, by their hidden states [n, C]."""
        uniforms = self._uniforms[rows].to(hidden.device)
        tokens = []
        for start in range(0, len(hidden), _CHUNK_ROWS):
            part = hidden[start : start + _CHUNK_ROWS]
            logits = head.logits(part, head.segments_of(part, self._weights))
            numbers = uniforms[start : start + _CHUNK_ROWS]
            tokens.append(draw_alternatives(NextTokens(logits), self._temperature, numbers))
        drawn = torch.cat(tokens)
        self._tokens[rows] = drawn.cpu().numpy()
        self._logprobs[rows] = head.logprobs(hidden, drawn, self._weights).cpu().numpy()

    @property
    def found(self) -> PromptAltTokens:
        """The draws, and their log-probabilities at temperature 1."""
        shape = list(self._tokens.shape)
        return PromptAltTokens(
            tokens=TensorData(self._tokens.reshape(-1), "int64", shape),
            logprobs=TensorData(self._logprobs.reshape(-1), "float32", shape),
        )


def _first_scored(job: SampleJob, length: int) -> int:
    if job.prompt_logprobs_last_n is None:
        return 1
    return max(1, length - job.prompt_logprobs_last_n)


def _cells(asked: TensorData) -> tuple[NDArray[np.int64], Any]:
    """Give the tokens asked for as a full table [T - 1, K], and where each value lies in it."""
    rows, columns = asked.dimensions
    sparse = asked.sparse_indices
    if sparse is None:
        return asked.values.reshape(rows, columns), None
    counts = np.diff(sparse[0])  # side by side, as wide as the fullest row
    at = np.arange(asked.values.size) - np.repeat(sparse[0][:-1], counts)
    place = (np.repeat(np.arange(rows), counts), at)
    cells = np.full((rows, int(counts.max(initial=0))), -1, dtype=np.int64)
    cells[place] = asked.values
    return cells, place
