"""Attention on packed tokens: what differs between training, prefill and decode, and nothing else.

Owns the function registered with transformers' `AttentionInterface` and the training form; those
of the sampler live beside the cache they read (`attention.chunks`, `kv_cache`). Every other line of
the forward is shared by trainer and sampler, so their log-probabilities agree.

No mask function is registered under our name: transformers then builds no mask at all
(`masking_utils._preprocess_mask_arguments` leaves early), and causality is ours to keep.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from tinkex.engine.attention.sinks import attend_with_sinks
from tinkex.engine.attention.windows import attend_in_blocks, pays_in_blocks
from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IMPLEMENTATION = "tinkex_packed"
"""Name of our function in transformers' registry."""

_IGNORED = frozenset({"dropout", "is_causal", "position_ids", "use_cache", "cache_position"})
"""Arguments of a transformers attention call that change nothing here."""


class PackedAttention(Protocol):
    """How one forward attends; made afresh for each forward."""

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
        """Attend in one layer.

        Args:
            layer: Index of the layer, for the KV cache.
            query: [N, heads, head_dim] of the packed tokens.
            key: [N, kv_heads, head_dim].
            value: [N, kv_heads, value_dim].
            scaling: Factor on the scores.
            window: Positions that a token sees, itself included; 0 means all before it.
            sinks: [heads] scores of the attention sinks, where the model has them.

        Returns:
            [N, heads, value_dim].
        """
        ...


class PrefillAttention:
    """Causal attention inside each sequence of a packed batch, for training.

    One call per run of equal lengths, so a batch sorted by length needs few calls and no padding.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = tuple(lengths)

    def attend(
        self,
        layer: int,  # noqa: ARG002 - of the protocol
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `PackedAttention.attend`."""
        outputs = [
            attend_sequences(query[a:b], key[a:b], value[a:b], length, scaling, window, sinks)
            for a, b, length in _equal_runs(self._lengths)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _equal_runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, length) of each run of sequences of equal length."""
    start = 0
    for length, run in groupby(lengths):
        end = start + length * sum(1 for _ in run)
        yield start, end, length
        start = end


def attend_sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    length: int,
    scaling: float,
    window: int,
    sinks: Tensor | None,
) -> Tensor:
    """Attend within [B * length, heads, dim] tokens of B whole sequences of `length` tokens."""

    def by_sequence(x: Tensor) -> Tensor:
        return x.view(-1, length, *x.shape[1:]).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend_dense(q, k, v, mask=mask, scaling=scaling, sinks=sinks)

    folded = by_sequence(query), by_sequence(key), by_sequence(value)
    if pays_in_blocks(length, window):
        out = attend_in_blocks(*folded, window=window, attend=attend)
    else:
        windowed = 0 < window < length
        mask = causal_mask(0, length, 0, window, query.device) if windowed else None
        out = attend(*folded, mask)
    return out.transpose(1, 2).flatten(0, 1)


def causal_mask(start: int, end: int, first: int, window: int, device: torch.device) -> Tensor:
    """Say which keys at positions first..end queries at start..end see: bool [queries, keys]."""
    queries = torch.arange(start, end, device=device)
    distance = queries[:, None] - torch.arange(first, end, device=device)
    mask = distance >= 0
    if window:
        mask &= distance < window
    return mask


def attend_dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    scaling: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with [B, heads, L, dim] queries over [B, kv_heads, M, dim] keys and values.

    Without a mask L = M and attention is causal.
    """
    if sinks is not None:
        return attend_with_sinks(query, key, value, sinks, mask=mask, scaling=scaling)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    packed_attention: PackedAttention | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' models ask, on one row of packed tokens.

    Args:
        module: The attention module; its `layer_idx` names the layer.
        query: [1, heads, N, head_dim].
        key: [1, kv_heads, N, head_dim].
        value: [1, kv_heads, N, value_dim].
        attention_mask: Always None, see the module's docstring.
        scaling: Factor on the scores, 1 / sqrt(head_dim) when absent.
        sliding_window: Positions that a token sees, or None for all.
        s_aux: [heads] scores of attention sinks.
        packed_attention: The forward's context, carried by the model's keyword arguments.
        extra: Other arguments; those that would change the result are refused by name.

    Returns:
        [1, N, heads, value_dim], and None for the attention weights.

    Raises:
        ConfigurationError: the model uses an attention feature that we do not have.
    """
    if packed_attention is None:
        raise ConfigurationError(
            f"{type(module).__name__} does not pass keyword arguments on to its attention "
            "function, so tinkex cannot drive it"
        )
    refused = sorted(k for k, v in extra.items() if v is not None and k not in _IGNORED)
    if refused or attention_mask is not None:
        raise ConfigurationError(
            f"{type(module).__name__} uses attention features that tinkex does not have: "
            f"{', '.join(refused) or 'its own mask'}"
        )
    out = packed_attention.attend(
        int(module.layer_idx),  # type: ignore[arg-type]  # nn.Module attributes are Tensor | Module
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or 0,
        sinks=s_aux,
    )
    return out.unsqueeze(0), None


def register() -> None:
    """Make our function known to transformers as `IMPLEMENTATION`; twice is harmless."""
    AttentionInterface.register(IMPLEMENTATION, packed_attention_forward)
