"""Attention of chunks of prompts over all that came before them, in blocks of fixed places.

A prompt is computed in blocks of a fixed size, and each attends by itself to everything up to its
end. So its bits depend on the tokens up to there alone: not on what else is computed with it, nor
on whether the blocks before it were computed now, in an earlier chunk, or by an earlier request.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch

from tinkex.engine.attention.packed import attend_dense, attend_sequences, causal_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tinkex.engine.attention.kv_cache import KVRow


class RowSpan(NamedTuple):
    """Positions of one prompt that a forward computes; `start` is a block's border."""

    row: KVRow
    start: int
    end: int


class _Block(NamedTuple):
    at: int
    """Its first token's place in the packed batch."""
    span: RowSpan


class ChunkAttention:
    """How chunks of several prompts attend; keys and values are kept in the prompts' rows.

    Tokens of the batch past the spans are filler and attend to nothing.

    Args:
        spans: the chunks, in the order of the packed batch.
        block_tokens: size of a block.
    """

    def __init__(self, spans: Sequence[RowSpan], block_tokens: int) -> None:
        self._spans = tuple(spans)
        self._masks: dict[tuple[int, int, int], Tensor] = {}
        blocks = []
        at = 0
        for span in spans:
            for start in range(span.start, span.end, block_tokens):
                end = min(start + block_tokens, span.end)
                blocks.append(_Block(at + start - span.start, RowSpan(span.row, start, end)))
            at += span.end - span.start
            span.row.length = span.end
        # First blocks of one length that lie side by side attend in one call.
        self._groups = [
            list(group)
            for _, group in groupby(
                blocks, key=lambda b: (b.span.start or -b.span.end, b.at if b.span.start else 0)
            )
        ]

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `attention.PackedAttention.attend`."""
        self._write(layer, key, value)
        outputs = []
        end = 0
        for group in self._groups:
            start, span = group[0]
            length = span.end - span.start
            end = start + length * len(group)
            here = slice(start, end)
            if span.start == 0:
                outputs.append(
                    attend_sequences(
                        query[here], key[here], value[here], length, scaling, window, sinks
                    )
                )
                continue
            first = max(0, span.start - window + 1) if window else 0
            stored = [
                kept[span.row.index, None, :, first : span.end]
                for kept in span.row.slab.layer(layer, key, value)
            ]
            found = attend_dense(
                query[here].transpose(0, 1)[None],
                stored[0],
                stored[1],
                mask=self._mask(span.start, span.end, first, window, query.device),
                scaling=scaling,
                sinks=sinks,
            )
            outputs.append(found[0].transpose(0, 1))
        filler = query.shape[0] - end
        if filler:
            outputs.append(query.new_zeros(filler, query.shape[1], value.shape[2]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        at = 0
        for row, start, end in self._spans:
            here = slice(at, at + end - start)
            keys, values = row.slab.layer(layer, key, value)
            keys[row.index, :, start:end] = key[here].transpose(0, 1)
            values[row.index, :, start:end] = value[here].transpose(0, 1)
            at = here.stop

    def _mask(self, start: int, end: int, first: int, window: int, device: torch.device) -> Tensor:
        mask = self._masks.get((start, end, window))
        if mask is None:
            mask = causal_mask(start, end, first, window, device)
            self._masks[start, end, window] = mask
        return mask
