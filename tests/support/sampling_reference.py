"""What sampling should draw from, written plainly in float64, and the test of whether it did."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

LEAST_EXPECTED = 5.0
"""Cells expected to hold less are counted as one: the statistic is chi-squared only for larger."""
ONE_IN_A_THOUSAND = 3.0902
"""Of the normal distribution."""


def distribution(
    logits: torch.Tensor, *, temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0
) -> dict[int, float]:
    """Compute the probability of each token [V] after temperature, then top-k, then top-p."""
    probabilities = (logits.double() / temperature).softmax(0).tolist()
    ranked = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    kept = ranked if top_k < 1 else ranked[:top_k]
    total = sum(probabilities[token] for token in kept)
    nucleus, reached = [], 0.0
    for token in kept:
        if reached >= top_p * total:
            break
        nucleus.append(token)
        reached += probabilities[token]
    return {token: probabilities[token] / reached for token in nucleus}


def chi_squared(
    drawn: Iterable[Hashable], expected: Mapping[Hashable, float]
) -> tuple[float, float]:
    """Compare draws with probabilities.

    Returns:
        Pearson's statistic, and what it exceeds once in a thousand times (Wilson and Hilferty
        1931); infinity and 0 when something impossible was drawn.
    """
    counts = Counter(drawn)
    if set(counts) - set(expected):
        return math.inf, 0.0
    total = counts.total()
    cells: list[tuple[float, float]] = []
    rare = (0.0, 0.0)
    for one, probability in expected.items():
        cell = (counts[one], total * probability)
        if cell[1] >= LEAST_EXPECTED:
            cells.append(cell)
        else:
            rare = (rare[0] + cell[0], rare[1] + cell[1])
    if rare[1] >= LEAST_EXPECTED:
        cells.append(rare)
    statistic = sum((count - mean) ** 2 / mean for count, mean in cells)
    freedom = len(cells) - 1
    spread = 2 / (9 * freedom)
    return statistic, freedom * (1 - spread + ONE_IN_A_THOUSAND * math.sqrt(spread)) ** 3
