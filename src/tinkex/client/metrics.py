"""Fold the metrics of a call's chunks into one dictionary. Pure.

The suffix after a key's last colon names the fold:

| suffix | fold over the chunks |
|---|---|
| `sum` `min` `max` | as the words say |
| `mean` | mean, weighted by the number of outputs of each chunk |
| `slack` | maximum minus that mean |
| `hash2` (older servers: `hash_unordered`) | sum of the integer values modulo 2**64 |
| `unique` | the first value under the key, the others under `key_1`, `key_2`, ... |

The keys are those of the first chunk; a key some chunk lacks, or whose suffix is not in the table,
is left out. Where the official SDK crashes, this is what happens instead: outputs of total weight
zero make `mean` and `slack` unweighted; a key of several colons is split at the last one; a key
of no colon has no fold, so it is kept when there is a single chunk and left out otherwise; a
`hash2` value that is no finite number makes the result NaN.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tinkex.types import ForwardBackwardOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_WORD = (1 << 64) - 1


def combine_outputs(results: Sequence[ForwardBackwardOutput]) -> ForwardBackwardOutput:
    """Join the chunks of one call: outputs in order, the first one's type, metrics folded."""
    if not results:
        return ForwardBackwardOutput(loss_fn_output_type="", loss_fn_outputs=[], metrics={})
    return ForwardBackwardOutput(
        loss_fn_output_type=results[0].loss_fn_output_type,
        loss_fn_outputs=[output for result in results for output in result.loss_fn_outputs],
        metrics=reduce_metrics(
            [result.metrics for result in results],
            [len(result.loss_fn_outputs) for result in results],
        ),
    )


def reduce_metrics(
    chunks: Sequence[Mapping[str, float]], weights: Sequence[int]
) -> dict[str, float]:
    """Fold the metrics of several chunks by the suffix of their keys.

    Args:
        chunks: the metrics of each chunk, in chunk order.
        weights: the number of outputs of each chunk.
    """
    reduced: dict[str, float] = {}
    for key in chunks[0] if chunks else ():
        if any(key not in chunk for chunk in chunks):
            continue
        values = [chunk[key] for chunk in chunks]
        _, colon, suffix = key.rpartition(":")
        if not colon:
            if len(values) == 1:
                reduced[key] = values[0]
        elif suffix == "unique":
            reduced[key] = values[0]
            reduced |= {f"{key}_{index}": value for index, value in enumerate(values[1:], 1)}
        elif fold := _FOLDS.get(suffix):
            reduced[key] = fold(values, weights)
    return reduced


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return float(np.average(values, weights=weights if sum(weights) else None))


def _slack(values: Sequence[float], weights: Sequence[int]) -> float:
    return float(np.max(values)) - _mean(values, weights)


def _hash2(values: Sequence[float], _: Sequence[int]) -> float:
    if not all(math.isfinite(value) for value in values):
        return math.nan
    return sum(int(value) & _WORD for value in values) & _WORD


_FOLDS: Mapping[str, Callable[[Sequence[float], Sequence[int]], float]] = {
    "sum": lambda values, _: np.sum(values).item(),
    "min": lambda values, _: np.min(values).item(),
    "max": lambda values, _: np.max(values).item(),
    "mean": _mean,
    "slack": _slack,
    "hash2": _hash2,
    "hash_unordered": _hash2,
}
