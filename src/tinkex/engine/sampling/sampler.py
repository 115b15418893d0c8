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
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_TEMPERATURE = 2.0**-150
"""What is no more than this is 0 as float32: dividing by it would leave no distribution."""
_FIRST_CANDIDATES = 64
_BLOCK = 64


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


class NextTokens:
    """The distributions of the next tokens of some sequences, at temperature 1.

    Args:
        logits: [n, V] float32.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.probabilities = torch.softmax(logits, dim=1)
        """[n, V] float32."""
        self._top = logits.amax(dim=1)
        # The largest logit's probability is 1 / sum(exp(z - top)): the formula of training's head.
        self._log_largest = self.probabilities.amax(dim=1).log_()

    @property
    def finite(self) -> Tensor:
        """[n] bool: whether a row has a distribution at all."""
        return self._log_largest.isfinite()

    def replace(self, rows: Tensor) -> None:
        """Put any other distribution in the place of `rows` [n] bool, so that they can be drawn."""
        self.logits = self.logits.masked_fill(rows[:, None], 0.0)
        self.probabilities = self.probabilities.masked_fill(rows[:, None], 1.0)

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Compute log_softmax(logits) at tokens [n] int64: [n] float32."""
        chosen = self.logits.gather(1, tokens[:, None])[:, 0]
        return chosen.sub_(self._top).add_(self._log_largest)


def choose_tokens(next_tokens: NextTokens, choices: Sequence[RowChoice]) -> Tensor:
    """Choose a token for each row.

    Args:
        next_tokens: n distributions.
        choices: One for each row.

    Returns:
        [n] int64 token ids.
    """
    # Rows of equal filters are worked together; a row's result does not depend on the others.
    groups: dict[tuple[bool, int, float], list[int]] = {}
    for row, choice in enumerate(choices):
        greedy = choice.temperature <= _NO_TEMPERATURE
        key = (greedy, 0, 1.0) if greedy else (greedy, choice.top_k, choice.top_p)
        groups.setdefault(key, []).append(row)
    device = next_tokens.logits.device
    found = torch.empty(len(choices), dtype=torch.int64, device=device)
    for (greedy, top_k, top_p), rows in groups.items():
        # All rows alike is the common case, and needs no copy of V numbers for each.
        index = None if len(groups) == 1 else torch.tensor(rows, device=device)
        if greedy:
            logits = next_tokens.logits
            tokens = (logits if index is None else logits[index]).argmax(dim=1)
        else:
            some = [choices[row] for row in rows]
            weights = _weights(next_tokens, index, [choice.temperature for choice in some])
            drawn = [choice.uniform for choice in some]
            uniform = torch.tensor(drawn, dtype=torch.float64, device=device)
            tokens = _draw(weights, uniform, top_k, top_p)
        if index is None:
            return tokens
        found[index] = tokens
    return found


def draw_alternatives(next_tokens: NextTokens, temperature: float, uniforms: Tensor) -> Tensor:
    """Draw several tokens from each of n distributions, without filters.

    The same as `choose_tokens` for each column of `uniforms`, at about the price of one.

    Args:
        next_tokens: n distributions.
        temperature: Of all; 0 takes the likeliest token every time.
        uniforms: [n, k] float64, in [0, 1).

    Returns:
        [n, k] int64 token ids.
    """
    if temperature <= _NO_TEMPERATURE:
        return next_tokens.logits.argmax(dim=1, keepdim=True).expand_as(uniforms)
    weights = _weights(next_tokens, None, [temperature] * len(uniforms))
    return _inverse_cdf(weights, uniforms)


def _weights(
    next_tokens: NextTokens, index: Tensor | None, temperatures: Sequence[float]
) -> Tensor:
    """Give softmax(logits / temperature) of the rows `index`, or of all: [m, V]."""
    if all(temperature == 1 for temperature in temperatures):
        weights = next_tokens.probabilities
        return weights if index is None else weights[index]
    logits = next_tokens.logits if index is None else next_tokens.logits[index]
    temperature = torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)
    # The largest entry becomes 0, so that nothing overflows; a row at temperature 1 has the bits
    # that it has above.
    scaled = logits.sub(logits.amax(dim=1, keepdim=True)).div_(temperature[:, None])
    return torch.softmax(scaled, dim=1)


def _draw(weights: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw in proportion to weights [n, V] under the filters, by inverse CDF in float64."""
    vocab_size = weights.shape[1]
    if (top_k == 0 or top_k >= vocab_size) and top_p >= 1:
        return _inverse_cdf(weights, uniform[:, None])[:, 0]
    if 0 < top_k < vocab_size:
        top, ids = weights.topk(top_k, dim=1)
        exact = top.double()
        return _draw_candidates(exact, ids, uniform, top_p * exact.sum(dim=1, keepdim=True))
    return _draw_nucleus(weights, uniform, top_p)


def _draw_nucleus(weights: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Draw under top-p, among as many of the likeliest tokens as each row needs.

    Which of equally likely tokens comes first depends on how many are looked for, so a row that has
    enough is drawn from those, whatever its neighbours need.
    """
    reach = top_p * weights.double().sum(dim=1, keepdim=True)
    tokens = torch.empty(len(weights), dtype=torch.int64, device=weights.device)
    left = torch.arange(len(weights), device=weights.device)
    count = min(_FIRST_CANDIDATES, weights.shape[1])
    while len(left):
        top, ids = weights[left].topk(count, dim=1)
        exact = top.double()
        done = exact.sum(dim=1) >= reach[left, 0]
        if count == weights.shape[1]:  # a rounded sum of all may fall short of what they reach
            done = torch.ones_like(done)
        ready = left[done]
        if len(ready):
            tokens[ready] = _draw_candidates(exact[done], ids[done], uniform[ready], reach[ready])
        left = left[~done]
        count = min(4 * count, weights.shape[1])
    return tokens


def _draw_candidates(exact: Tensor, ids: Tensor, uniform: Tensor, reach: Tensor) -> Tensor:
    """Draw among the fewest likeliest tokens that reach a share.

    Args:
        exact: [n, k] float64 weights in falling order.
        ids: [n, k] their tokens.
        uniform: [n].
        reach: [n, 1] the weight to be reached.
    """
    before = exact.cumsum(dim=1) - exact
    kept = exact.masked_fill(before >= reach, 0.0)
    return ids.gather(1, _inverse_cdf(kept, uniform[:, None]))[:, 0]


def _inverse_cdf(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Give the first index whose cumulated weight passes uniform x total: [n, V], [n, k] -> [n, k].

    In two levels, sums of blocks and then one block: a running sum over a whole vocabulary costs
    twenty times a plain one. Sums are float64 but those of a block's 64 weights, whose rounding is
    that of the weights themselves.
    """
    count, size = weights.shape
    filler = -size % _BLOCK
    blocks = (F.pad(weights, (0, filler)) if filler else weights).view(count, -1, _BLOCK)
    sums = blocks.sum(dim=2).double()
    block, rest = _locate(sums, uniforms * sums.sum(dim=1, keepdim=True))
    inside = blocks[torch.arange(count, device=weights.device)[:, None], block].double()
    place, _ = _locate(inside, rest[..., None])
    return block * _BLOCK + place[..., 0]


def _locate(weights: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Find where the running sums of [..., m] weights pass thresholds [..., k].

    Returns:
        Indices [..., k], always of positive weights, and how far into them the thresholds lie.
    """
    cumulated = weights.cumsum(dim=-1)
    last = cumulated[..., -1:]
    # A rounded-up threshold must not pass the end.
    threshold = threshold.minimum(last.nextafter(torch.zeros_like(last)))
    index = torch.searchsorted(cumulated, threshold, right=True)
    before = cumulated.gather(-1, index) - weights.gather(-1, index)
    return index, (threshold - before).clamp_min(0)
