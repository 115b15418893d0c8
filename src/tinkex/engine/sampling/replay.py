"""Samples that go on after tokens which they did not sample themselves.

Owns computing the keys and values of these, as decoding would have left them (`attention.replay`).
From then on such a sample is like any other. Whose turn it is, is `generation`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tinkex.engine.attention.replay import ReplayAttention

if TYPE_CHECKING:
    from tinkex.engine.attention.kv_cache import KVCache
    from tinkex.engine.models.runner import ModelRunner
    from tinkex.engine.sampling.sequence import RunningSequence

_MOST_ROWS = 256
"""Tokens of one forward: each attends by itself, which takes memory where a kernel copies keys."""


class Replay:
    """Feeds tokens of samples without choosing others."""

    def __init__(self, runner: ModelRunner, cache: KVCache) -> None:
        self._runner = runner
        self._cache = cache

    def run(self, sequence: RunningSequence, count: int) -> None:
        """Feed the next `count` tokens that a sequence is behind; when it fails, none."""
        row = sequence.row
        assert row is not None
        before = row.length
        try:
            while (left := before + count - row.length) > 0:
                self._feed(sequence, min(left, _MOST_ROWS))
        except BaseException:
            row.length = before
            raise

    def _feed(self, sequence: RunningSequence, count: int) -> None:
        state = sequence.state
        assert sequence.row is not None
        row = sequence.row = self._cache.make_room(sequence.row, count)
        start = row.length
        first = start - len(state.prompt)
        extra = self._runner.filler(count, [state.weights])
        device = self._runner.device
        ids = [*sequence.tokens[first : first + count], *([0] * extra)]
        positions = [*range(start, start + count), *([0] * extra)]
        self._runner.hidden(
            torch.tensor(ids, device=device),
            torch.tensor(positions, device=device),
            ReplayAttention(row, start, start + count),
            self._runner.stacked([state.weights] * count, len(ids)),
            live=count,
        )
