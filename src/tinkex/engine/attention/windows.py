"""Sliding-window attention of whole sequences in blocks: work that grows with the window alone.

A kernel with a mask multiplies every query by every key and throws most away. Here a sequence is
cut into blocks no shorter than the window; a block's queries see its own keys and those of the
block before, and no others. The blocks lie at fixed places of the sequence, so its bits depend on
itself alone. Owns the cutting; the attention of a block is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORTEST_BLOCK = 64


def pays_in_blocks(length: int, window: int) -> bool:
    """Whether a sequence is long enough beside its window for blocks to save work."""
    return window > 0 and length > 2 * max(window, _SHORTEST_BLOCK)


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int,
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Attend causally within a window.

    Args:
        query: [B, heads, L, dim].
        key: [B, kv_heads, L, dim].
        value: [B, kv_heads, L, value_dim].
        window: Positions that a token sees, itself included.
        attend: Attends with queries, keys, values and a mask, bool [queries, keys].

    Returns:
        [B, heads, L, value_dim].
    """
    batch, length = query.shape[0], query.shape[2]
    size = max(window, _SHORTEST_BLOCK)
    extra = -length % size
    query, key, value = (F.pad(x, (0, 0, 0, extra)) for x in (query, key, value))
    place = torch.arange(2 * size, device=query.device)
    distance = place[size:, None] - place
    mask = (distance >= 0) & (distance < window)
    start = slice(size)
    first = attend(query[:, :, start], key[:, :, start], value[:, :, start], mask[:, size:])
    keys, values = (
        torch.cat((_blocks(x[:, :, :-size], size), _blocks(x[:, :, size:], size)), dim=2)
        for x in (key, value)
    )
    later = attend(_blocks(query[:, :, size:], size), keys, values, mask)
    later = later.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)  # type: ignore[no-untyped-call]
    return torch.cat((first, later), dim=2)[:, :, :length]


def _blocks(x: Tensor, size: int) -> Tensor:
    """Cut [B, heads, n * size, dim] into [B * n, heads, size, dim]."""
    batch, heads, length, dim = x.shape
    cut = x.reshape(batch, heads, length // size, size, dim)
    return cut.transpose(1, 2).flatten(0, 1)
