"""Logits -> tokens: temperature, top-k, top-p, greedy, and the log-probabilities reported.

Inverse CDF with one uniform for each row: no noise over the vocabulary, no full sort. Order of the
filters: temperature, then top-k, then top-p on what is left (the smallest set of likeliest tokens
whose probability reaches top_p).

Log-probabilities are those of `log_softmax(logits)`: at temperature 1 and before any filter, the
same numbers that training's forward gives for these tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_CANDIDATES = 64


@dataclass(frozen=True, slots=True)
class RowChoice:
    """How one row of logits is to be sampled."""

    temperature: float
    """0 takes the likeliest token."""
    top_k: int
    """0 means all tokens."""
    top_p: float
    uniform: float
    """In [0, 1)."""


def choose_tokens(logits: Tensor, choices: Sequence[RowChoice]) -> Tensor:
    """Choose a token for each row.

    Args:
        logits: [n, V] float32.
        choices: One for each row.

    Returns:
        [n] int64 token ids.
    """
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    # Rows of equal filters are worked together; a row's result does not depend on the others.
    groups: dict[tuple[bool, int, float], list[int]] = {}
    for row, choice in enumerate(choices):
        greedy = choice.temperature == 0
        key = (greedy, 0, 1.0) if greedy else (greedy, choice.top_k, choice.top_p)
        groups.setdefault(key, []).append(row)
    for (greedy, top_k, top_p), rows in groups.items():
        index = torch.tensor(rows, device=logits.device)
        part = logits[index]
        if greedy:
            tokens[index] = part.argmax(dim=1)
            continue
        scaled = _scale(part, [choices[row].temperature for row in rows])
        uniform = torch.tensor(
            [choices[row].uniform for row in rows], dtype=torch.float64, device=logits.device
        )
        tokens[index] = _draw(scaled, uniform, top_k, top_p)
    return tokens


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Compute log_softmax(logits) at tokens: [n, V] float32 and [n] -> [n] float32."""
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=1)


def _scale(logits: Tensor, temperatures: Sequence[float]) -> Tensor:
    """Divide by the temperature; the largest entry becomes 0, so nothing overflows."""
    temperature = torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)
    return (logits - logits.amax(dim=1, keepdim=True)) / temperature[:, None]


def _draw(scaled: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw from softmax(scaled) [n, V] under the filters, by inverse CDF in float64."""
    vocab_size = scaled.shape[1]
    weights = scaled.exp()
    if (top_k == 0 or top_k >= vocab_size) and top_p >= 1:
        return _inverse_cdf(weights.double(), uniform)
    kept, ids = _candidates(weights, top_k, top_p)
    return ids.gather(1, _inverse_cdf(kept, uniform)[:, None])[:, 0]


def _candidates(weights: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Find the tokens that pass both filters.

    Args:
        weights: [n, V] unnormalised probabilities.
        top_k: 0 means all.
        top_p: 1 means all.

    Returns:
        Weights [n, k] float64 in falling order, 0 where top-p cuts, and their ids [n, k].
    """
    vocab_size = weights.shape[1]
    if 0 < top_k < vocab_size:
        top, ids = weights.topk(top_k, dim=1)
        total = top.double().sum(dim=1, keepdim=True)
    else:
        total = weights.double().sum(dim=1, keepdim=True)
        count = min(_FIRST_CANDIDATES, vocab_size)
        top, ids = weights.topk(count, dim=1)
        while count < vocab_size and bool(
            (top.double().sum(1, keepdim=True) < top_p * total).any()
        ):
            count = min(4 * count, vocab_size)
            top, ids = weights.topk(count, dim=1)
    exact = top.double()
    before = exact.cumsum(dim=1) - exact
    return exact.masked_fill(before >= top_p * total, 0.0), ids


def _inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Give the first index whose cumulated weight passes uniform x total: [n, k], [n] -> [n]."""
    cumulated = weights.cumsum(dim=1)
    # A rounded-up product must not pass the end.
    threshold = (uniform[:, None] * cumulated[:, -1:]).minimum(
        cumulated[:, -1:].nextafter(cumulated.new_zeros(()))
    )
    return torch.searchsorted(cumulated, threshold, right=True)[:, 0]
