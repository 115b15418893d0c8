"""Attention of tokens that were decoded before, many at once, with the bits of one after the other.

A prompt's blocks attend otherwise than a decoded token does, and round otherwise. Where a sample
goes on after tokens that another engine sampled, its keys and values must be those that decoding
gave, so each position attends here by itself, as a row of a decode step: over a row of the size
class that it had then. Positions behind it are masked, which adds exact zeros. The rest of a
forward gives a row its bits whatever the number of rows.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from tinkex.engine.attention.sinks import decode_with_sinks
from tinkex.engine.attention.size_classes import row_capacity

if TYPE_CHECKING:
    from torch import Tensor

    from tinkex.engine.attention.kv_cache import KVRow


_COPIED = 2**22
"""Numbers of keys that are copied at once."""


class ReplayAttention:
    """How positions of one row attend; keys and values are kept in it.

    Tokens of the batch past them are filler and attend to nothing.

    Args:
        row: with room up to `end`; all before `start` is there.
        start: the first position.
        end: behind the last.
    """

    def __init__(self, row: KVRow, start: int, end: int) -> None:
        self._row = row
        self._start = start
        self._end = end
        self._groups = [
            (capacity, list(places))
            for capacity, places in groupby(range(start, end), key=lambda at: row_capacity(at + 1))
        ]
        self._masks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        row.length = end

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
        keys, values = self._row.slab.layer(layer, key, value)
        count = self._end - self._start
        own = keys[self._row.index], values[self._row.index]
        for stored, new in zip(own, (key, value), strict=True):
            stored[:, self._start : self._end] = new[:count].transpose(0, 1)
        out = query.new_zeros(query.shape[0], query.shape[1], value.shape[2])
        for capacity, places in self._groups:
            here = slice(places[0] - self._start, places[-1] + 1 - self._start)
            part = query[here]
            folded = part.reshape(len(part), key.shape[1], -1, part.shape[2])
            mask, bias = self._mask(capacity, places, window, query)
            seen = [one[None, :, :capacity] for one in own]
            if sinks is not None:
                found = _with_sinks(folded, seen[0], seen[1], sinks, mask, scaling)
            else:
                each = [one.expand(len(part), -1, -1, -1) for one in seen]
                found = F.scaled_dot_product_attention(
                    folded, each[0], each[1], attn_mask=bias, scale=scaling
                )
            out[here] = found.reshape(len(part), query.shape[1], -1)
        return out

    def _mask(
        self, capacity: int, places: list[int], window: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Say where each position may look: [n, 1, 1, capacity] bool, and as 0 or -inf."""
        found = self._masks.get((capacity, window))
        if found is None:
            position = torch.tensor(places, device=like.device)
            distance = position[:, None] - torch.arange(capacity, device=like.device)
            seen = distance >= 0
            if window:
                seen &= distance < window
            seen = seen[:, None, None]
            bias = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
            found = self._masks[capacity, window] = seen, bias.masked_fill_(~seen, -torch.inf)
        return found


def _with_sinks(
    query: Tensor, keys: Tensor, values: Tensor, sinks: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    """Attend with sinks; keys are laid out for each query as in the cache, or bits would differ."""
    pieces = max(1, _COPIED // max(1, keys.numel()))
    found = []
    for first in range(0, len(query), pieces):
        some = query[first : first + pieces]
        each_keys, each_values = (one.repeat(len(some), 1, 1, 1) for one in (keys, values))
        shown = mask[first : first + pieces]
        attended = decode_with_sinks(
            some, each_keys, each_values, sinks, mask=shown, scaling=scaling
        )
        found.append(attended)
    return torch.cat(found)
