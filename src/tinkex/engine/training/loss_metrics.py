"""The metrics of a training call: the loss, counts, and what the policy losses are watched by.

The suffix of a name says how the values of several chunks combine (`client.metrics`). Statistics
are over the tokens that the loss counts: weight and advantage are not zero.

    loss:sum               the loss
    num_tokens:sum         tokens of the model inputs
    num_loss_tokens:sum    tokens that the loss counts
    entropy:mean           -log p of the tokens: of sampled ones an estimate of the entropy, nats
    ratio:mean, :min, :max exp(lp - q)
    kl:mean                q - lp: the k1 estimate of KL(sampler, learner) (Schulman 2020), nats
    clip_fraction:mean     share of tokens whose ratio lies beyond the thresholds; of gspo, whose
                           sequence's ratio does

A call that counts no token has no statistics, and folding its metrics with those of other chunks
leaves them out: there is nothing that they would be the mean of.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tinkex.engine.training.losses import HIGH, LOW, MASK, WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tinkex.engine.training.batching import TrainingSequence
    from tinkex.engine.training.graph_loss import GraphResult
    from tinkex.engine.training.losses import LossCall


def call_metrics(
    call: LossCall,
    sequences: Sequence[TrainingSequence],
    logprobs: Mapping[int, NDArray[np.float32]],
    elementwise: Mapping[int, NDArray[np.float32]],
    graphs: Mapping[int, GraphResult],
) -> dict[str, float]:
    """Compute the metrics of a whole call, by data in their order.

    Args:
        call: the loss.
        sequences: the data.
        logprobs: of each datum, in the shape of its targets.
        elementwise: losses of each datum, likewise; empty for a user's own loss.
        graphs: what a user's own loss gave for each datum; empty for the others.
    """
    tokens = sum(len(sequence.tokens) for sequence in sequences)
    metrics = {"loss:sum": 0.0, "num_tokens:sum": float(tokens)}
    if graphs:
        found = [graphs[sequence.index] for sequence in sequences]
        metrics["loss:sum"] = math.fsum(float(one.loss) for one in found)
        for name in dict.fromkeys(key for one in found for key in one.metrics):
            values = [one.metrics[name] for one in found if name in one.metrics]
            total = math.fsum(values)
            metrics[name] = total / len(values) if name.endswith(":mean") else total
        return metrics
    metrics["loss:sum"] = math.fsum(
        float(elementwise[s.index].sum(dtype=np.float64)) for s in sequences
    )
    return metrics | _statistics(call, sequences, logprobs)


def _statistics(
    call: LossCall,
    sequences: Sequence[TrainingSequence],
    logprobs: Mapping[int, NDArray[np.float32]],
) -> dict[str, float]:
    learner, kept = [], []
    for sequence in sequences:
        fields = sequence.fields
        counted = fields[WEIGHTS] != 0
        if "advantages" in fields:
            counted &= fields["advantages"] != 0
        kept.append(counted)
        learner.append(logprobs[sequence.index].reshape(counted.shape)[counted])
    values = np.concatenate(learner).astype(np.float64)
    found = {"num_loss_tokens:sum": float(sum(counted.any(axis=1).sum() for counted in kept))}
    if not values.size or "logprobs" not in call.loss.required:
        return found
    found["entropy:mean"] = float(-values.mean())

    def chosen(key: str) -> NDArray[np.float64]:
        rows = [s.fields[key][counted] for s, counted in zip(sequences, kept, strict=True)]
        return np.concatenate(rows).astype(np.float64)

    gap = values - chosen("logprobs")
    ratio = _exp(gap)
    found |= {
        "kl:mean": float(-gap.mean()),
        "ratio:mean": _mean(ratio),
        "ratio:min": float(ratio.min()),
        "ratio:max": float(ratio.max()),
    }
    if HIGH in call.config:
        low, high = (
            chosen(key) if key in sequences[0].fields else call.config.get(key, 0.0)
            for key in (LOW, HIGH)
        )
        if MASK in call.loss.required:
            ratio = _exp(_sequence_gaps(sequences, kept, logprobs))
        found["clip_fraction:mean"] = float(((ratio < low) | (ratio > high)).mean())
    return found


def _sequence_gaps(
    sequences: Sequence[TrainingSequence],
    kept: Sequence[NDArray[np.bool_]],
    logprobs: Mapping[int, NDArray[np.float32]],
) -> NDArray[np.float64]:
    """Give each counted token the mean of lp - q over the marked tokens of its sequence."""
    gaps = []
    for sequence, counted in zip(sequences, kept, strict=True):
        marked = sequence.fields[MASK] != 0
        learner = logprobs[sequence.index].reshape(marked.shape)[marked].astype(np.float64)
        gap = learner - sequence.fields["logprobs"][marked]
        gaps.append(np.full(int(counted.sum()), gap.mean() if gap.size else 0.0))
    return np.concatenate(gaps)


def _mean(ratio: NDArray[np.float64]) -> float:
    """Give the mean; of the largest numbers their sum overflows, and that of rounded parts may."""
    with np.errstate(over="ignore"):
        return min(float((ratio / ratio.size).sum()), float(ratio.max()))


def _exp(log_ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give ratios; one that overflows is the largest number."""
    with np.errstate(over="ignore"):
        return np.minimum(np.exp(log_ratio), np.finfo(np.float64).max)
