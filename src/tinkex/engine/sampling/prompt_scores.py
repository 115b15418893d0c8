"""What a sampling job asks about its prompt: log-probabilities, alternatives, draws.

Position 0 of a prompt has no prediction; the hidden state at position i predicts position i + 1.
Owns the arithmetic; when a prompt is computed is `generation`'s matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tinkex.engine.sampling.sampler import NextTokens, draw_alternatives
from tinkex.engine.sampling.uniform import UniformStream
from tinkex.types import PromptAltTokens, TensorData
from tinkex.types.sampling import EMPTY_TOPK_LOGPROB

if TYPE_CHECKING:
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


def score_prompt(state: JobState, hidden: Tensor, start: int, head: Head) -> None:
    """Compute everything that a job asked about its prompt, and keep it in `state`.

    Args:
        state: the job.
        hidden: [T - start, C], of the prompt's positions from `start` on.
        start: at most `first_wanted`.
        head: the unembedding.
    """
    job, length = state.job, len(state.prompt)
    first = _first_scored(job, length)
    before = hidden[max(first - 1 - start, 0) : max(length - 1 - start, 0)]
    ids = torch.from_numpy(state.prompt[first:]).to(hidden.device)
    if job.prompt_logprobs:
        state.prompt_logprobs = np.full(length, np.nan, dtype=np.float32)
        if before.shape[0]:
            found = head.logprobs(before, ids[:, None], state.weights)
            state.prompt_logprobs[first:] = found[:, 0].cpu().numpy()
    k = job.topk_prompt_logprobs
    if k:
        token_ids = np.zeros((length, k), dtype=np.int32)
        values = np.full((length, k), EMPTY_TOPK_LOGPROB, dtype=np.float32)
        if before.shape[0]:
            top, top_ids = head.topk_logprobs(before, k, state.weights)
            token_ids[first:], values[first:] = top_ids.cpu().numpy(), top.cpu().numpy()
        state.topk_prompt = (token_ids, values)
    if job.target_prompt_logprobs is not None:
        state.target_prompt = _targets(state, job.target_prompt_logprobs, hidden[:-1], head)
    if job.prompt_alt_tokens_k:
        state.prompt_alternatives = _draws(state, job.prompt_alt_tokens_k, hidden[:-1], head)


def _first_scored(job: SampleJob, length: int) -> int:
    if job.prompt_logprobs_last_n is None:
        return 1
    return max(1, length - job.prompt_logprobs_last_n)


def _targets(state: JobState, asked: TensorData, before: Tensor, head: Head) -> TensorData:
    """Score the tokens asked for, in the shape and layout of the request; 0 where it has -1."""
    rows, columns = asked.dimensions
    sparse = asked.sparse_indices
    if sparse is None:
        cells = asked.values.reshape(rows, columns)
    else:  # side by side, as wide as the fullest row
        counts = np.diff(sparse[0])
        at = np.arange(asked.values.size) - np.repeat(sparse[0][:-1], counts)
        place = (np.repeat(np.arange(rows), counts), at)
        cells = np.full((rows, int(counts.max(initial=0))), -1, dtype=np.int64)
        cells[place] = asked.values
    found = np.zeros(cells.shape, dtype=np.float32)
    if cells.size and before.shape[0]:
        targets = torch.tensor(cells.clip(min=0), device=before.device)
        found = head.logprobs(before, targets, state.weights).cpu().numpy()
        found = np.where(cells < 0, np.float32(0), found)
    if sparse is None:
        return TensorData(found.reshape(-1), "float32", [rows, columns])
    return TensorData(found[place], "float32", [rows, columns], sparse[0], sparse[1])


def _draws(state: JobState, k: int, before: Tensor, head: Head) -> PromptAltTokens:
    """Draw k tokens for each position, independently and at the job's temperature."""
    rows = before.shape[0]
    stream = UniformStream(state.rule.seed, PROMPT_STREAM)
    uniforms = torch.tensor([stream.draw() for _ in range(rows * k)], dtype=torch.float64)
    uniforms = uniforms.view(rows, k).to(before.device)
    tokens = torch.zeros(rows, k, dtype=torch.int64)
    for start in range(0, rows, _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        logits = head.logits(before[part], head.segments_of(before[part], state.weights))
        found = draw_alternatives(NextTokens(logits), state.rule.temperature, uniforms[part])
        tokens[part] = found.cpu()
    logprobs = np.zeros((rows, k), dtype=np.float32)
    if rows:
        scores = head.logprobs(before, tokens.to(before.device), state.weights)
        logprobs = scores.cpu().numpy()
    return PromptAltTokens(
        tokens=TensorData(tokens.numpy().reshape(-1), "int64", [rows, k]),
        logprobs=TensorData(logprobs.reshape(-1), "float32", [rows, k]),
    )
