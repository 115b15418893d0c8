"""Prompts -> keys and values in rows, and the hidden states that are asked about.

A prompt is computed in chunks of whole blocks, several prompts' chunks in one forward; blocks that
the prefix cache has are copied instead. Owns what is left to compute of each prompt; whose turn it
is, is `scheduler`'s.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from tinkex.engine.attention.chunks import ChunkAttention, RowSpan
from tinkex.engine.lora.weights import LoraSegment
from tinkex.engine.sampling.prefix_cache import PrefixCache, block_keys
from tinkex.engine.sampling.prompt_scores import first_wanted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tinkex.engine.attention.kv_cache import KVCache, KVRow
    from tinkex.engine.config import EngineConfig
    from tinkex.engine.lora.weights import LoraWeights
    from tinkex.engine.models.runner import ModelRunner
    from tinkex.engine.sampling.prefix_cache import PrefixBlock, PrefixScope
    from tinkex.engine.sampling.sequence import JobState


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """Positions of a prompt to compute now; `start` is a block's border."""

    state: JobState
    start: int
    end: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.end - self.start


class Prefill:
    """Computes the prompts of one engine's sampling jobs."""

    def __init__(self, runner: ModelRunner, cache: KVCache, config: EngineConfig) -> None:
        self._runner = runner
        self._cache = cache
        self._budget = config.prefill_tokens
        self._block = config.prefill_block_tokens
        self.prefix = PrefixCache(self._block, config.prefix_cache_tokens, cache.copy_out)
        self.prefilled_tokens = 0
        """Prompt tokens computed since the engine was made."""
        self.reused_tokens = 0
        """Prompt tokens taken from the prefix cache instead."""

    def open(self, state: JobState) -> None:
        """Give a job a row for its prompt, with what the prefix cache has of it."""
        if state.prompt_row is None:  # it is there when this is done again
            state.prompt_row = self._cache.allocate(len(state.prompt))
        length = len(state.prompt)
        state.wanted_from = length if state.scores is not None else first_wanted(state.job, length)
        if self.prefix.enabled:
            state.scope = self.prefix.scope(state.job.owner, state.weights)
            state.block_keys = block_keys(state.prompt, self._block)
            self.reuse(state)

    def close(self, row: KVRow, room: int, *, scrub: bool = False) -> None:
        """Free a row; what it has of a prompt is kept if `room` (in tokens) allows."""
        self.prefix.release(row, room, spoiled=scrub)
        self._cache.free(row, scrub=scrub)

    def plan(self, order: Sequence[JobState]) -> list[PromptChunk]:
        """Choose what to compute now, at most the budget; jobs earlier in `order` come first.

        A job that needs a block which another one computes in this very step waits for it.
        """
        budget = self._budget
        claimed: set[tuple[PrefixScope, bytes]] = set()
        chunks = []
        for state in order:
            end = state.computed
            while end < len(state.prompt):
                after = min(end + self._block, len(state.prompt))
                if after - end > budget:
                    break
                if state.scope is not None:
                    claim = state.scope, state.block_keys[end // self._block]
                    if claim in claimed and after <= state.wanted_from:
                        break
                    claimed.add(claim)
                budget -= after - end
                end = after
            if end > state.computed:
                chunks.append(PromptChunk(state, state.computed, end))
        return chunks

    def run(self, chunks: Sequence[PromptChunk]) -> list[JobState]:
        """Compute chunks; gives the jobs for whom the model gave what is not finite."""
        order = sorted(chunks, key=lambda c: (id(c.state.weights), c.start, c.end))
        lengths = [chunk.tokens for chunk in order]
        extra = self._runner.filler(sum(lengths), [chunk.state.weights for chunk in order])
        device = self._runner.device
        ids = np.concatenate([c.state.prompt[c.start : c.end] for c in order])
        positions = [torch.arange(c.start, c.end) for c in order] + [torch.arange(extra)]
        attention = ChunkAttention([_span(chunk) for chunk in order], self._block)
        hidden = self._runner.hidden(
            F.pad(torch.from_numpy(ids), (0, extra)).to(device),
            torch.cat(positions).to(device),
            attention,
            segments_of([c.state.weights for c in order], lengths),
        )
        self.prefilled_tokens += sum(lengths)
        ends = [0, *itertools.accumulate(lengths)]
        parts = [hidden[a:b] for a, b in itertools.pairwise(ends)]
        finite = torch.stack([part.isfinite().all() for part in parts]).tolist()
        for chunk, part, good in zip(order, parts, finite, strict=True):
            if good:
                self._keep(chunk, part)
        return [chunk.state for chunk, good in zip(order, finite, strict=True) if not good]

    def _keep(self, chunk: PromptChunk, hidden: Tensor) -> None:
        """Take the hidden states [n, C] of a computed chunk, and offer its blocks to others."""
        state, start, end = chunk.state, chunk.start, chunk.end
        if end > state.wanted_from:
            state.hidden.append(hidden[max(0, state.wanted_from - start) :])
        state.computed = end
        if end == len(state.prompt):
            state.last_hidden = hidden[-1]
        if state.scope is None:
            return
        borders = [*range(start, end, self._block), end]
        ends = hidden[torch.tensor(borders[1:], device=hidden.device) - 1 - start]
        for i, place in enumerate(borders[:-1]):
            block = self._offer(state, place, borders[i + 1])
            if block.end_state is None:
                block.end_state = ends[i]

    def _offer(self, state: JobState, start: int, end: int) -> PrefixBlock:
        assert state.scope is not None
        assert state.prompt_row is not None
        key = state.block_keys[start // self._block]
        return self.prefix.add(state.scope, key, (start, end), state.prompt_row)

    # --- reuse ----------------------------------------------------------------------------------

    def reuse(self, state: JobState) -> None:
        """Copy the blocks that come next in a prompt, as far as the prefix cache has them."""
        blocks = self._found(state)
        if not blocks:
            return
        row = state.prompt_row
        assert row is not None
        self.prefix.touch(blocks)
        start = end = blocks[0].start
        source: KVRow | None = None
        for block in blocks:
            live = next(iter(block.rows), None)
            if source is not None and live is not source:
                source.slab.copy_row(source, row, start, end)
            if live is not source:
                source, start = live, block.start
            if live is None:
                assert block.copy is not None
                row.slab.copy_in(block.copy, row, block.start)
            end = block.end
        if source is not None:
            source.slab.copy_row(source, row, start, end)
        for block in blocks:  # not before all is there: the copying may fail
            self.prefix.hold(block, row)
        row.length = state.computed = end
        if state.scores is None:  # else it is computed again, for a sample that was preempted
            state.reused += end - blocks[0].start
        self.reused_tokens += end - blocks[0].start
        if end == len(state.prompt):
            state.last_hidden = blocks[-1].end_state

    def _found(self, state: JobState) -> list[PrefixBlock]:
        if state.scope is None:
            return []
        found = []
        for key in state.block_keys[state.computed // self._block :]:
            block = state.scope.blocks.get(key)
            if block is None or block.end > state.wanted_from:
                break
            found.append(block)
        return found


def _span(chunk: PromptChunk) -> RowSpan:
    assert chunk.state.prompt_row is not None
    return RowSpan(chunk.state.prompt_row, chunk.start, chunk.end)


def segments_of(weights: Sequence[LoraWeights | None], counts: Sequence[int]) -> list[LoraSegment]:
    """Merge neighbours of the same adapter into segments; the base model needs none."""
    segments: list[LoraSegment] = []
    start = 0
    for adapter, count in zip(weights, counts, strict=True):
        end = start + count
        if adapter is not None:
            if segments and segments[-1].weights is adapter and segments[-1].end == start:
                segments[-1] = LoraSegment(segments[-1].start, end, adapter)
            else:
                segments.append(LoraSegment(start, end, adapter))
        start = end
    return segments
