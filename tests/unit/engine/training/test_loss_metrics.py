"""The metrics of training calls: what they count, and that both SDKs can fold them over chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from engine_support import datum, trained_engine
from loss_reference import THRESHOLDS

from tinkex.client.loss_handle import trace
from tinkex.client.metrics import combine_outputs
from tinkex.engine.training.graph_loss import GraphLoss
from tinkex.engine.training.losses import LOSSES

SETTINGS = {"dro": {"beta": 0.1}, "gspo": THRESHOLDS}
COUNTS = {"loss:sum", "num_tokens:sum", "num_loss_tokens:sum"}
STATISTICS = {"entropy:mean", "kl:mean", "ratio:mean", "ratio:min", "ratio:max"}
CLIPS = {"ppo", "cispo", "gspo", "stable_reinforce"}


def data_for(loss_fn, lengths, seed=0, **inputs):
    mask = {}
    data = []
    for index, length in enumerate(lengths):
        if loss_fn == "gspo":
            mask = {"sequence_ratio_mask": np.ones(length, np.float32)}
        data.append(datum(length, seed=seed + index, loss_fn=loss_fn, **{**mask, **inputs}))
    return data


def official(results):
    """Fold with the official package's own code."""
    tinker = pytest.importorskip("tinker")
    helpers = pytest.importorskip("tinker.lib.chunked_fwdbwd_helpers")
    return helpers.combine_fwd_bwd_output_results(
        [
            tinker.ForwardBackwardOutput(
                loss_fn_output_type=one.loss_fn_output_type,
                loss_fn_outputs=[{} for _ in one.loss_fn_outputs],
                metrics=dict(one.metrics),
            )
            for one in results
        ]
    ).metrics


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_its_metrics(name):
    engine = trained_engine()
    metrics = engine.forward_backward("a", data_for(name, (5, 9)), name, SETTINGS.get(name)).metrics
    expected = COUNTS if name == "cross_entropy" else COUNTS | STATISTICS
    assert metrics.keys() == (expected | {"clip_fraction:mean"} if name in CLIPS else expected)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["num_tokens:sum"] == 14


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_chunks_fold_to_the_metrics_of_the_whole(name):
    """Chunks of equal data counts and lengths, where a mean over chunks is the mean over tokens."""
    config = SETTINGS.get(name)
    engine = trained_engine()
    chunks = [
        engine.forward_backward("a", data_for(name, (6, 8), seed), name, config)
        for seed in (0, 10, 20)
    ]
    data = [one for seed in (0, 10, 20) for one in data_for(name, (6, 8), seed)]
    whole = engine.forward_backward("a", data, name, config).metrics
    folded = official(chunks)
    assert folded.keys() == whole.keys()
    for key, value in whole.items():
        assert folded[key] == pytest.approx(value, rel=1e-5), key
    assert combine_outputs(chunks).metrics == pytest.approx(folded, rel=1e-12)


def test_metrics_of_a_users_own_loss_fold_too():
    def fn(logprobs, weights):
        loss = -(logprobs * weights).sum()
        return loss, {"custom/nll:sum": loss, "custom/spread:mean": logprobs.std()}

    handle = trace(fn, {"logprobs": 1, "weights": 1})
    graph = GraphLoss(handle.name, handle.inputs, handle.encode())
    engine = trained_engine()
    chunks = [
        engine.forward_backward("a", data_for("cross_entropy", lengths), "custom", graph=graph)
        for lengths in ((4,), (5, 6, 7))
    ]
    whole = engine.forward_backward(
        "a",
        [*data_for("cross_entropy", (4,)), *data_for("cross_entropy", (5, 6, 7))],
        "custom",
        graph=graph,
    ).metrics
    folded = official(chunks)
    assert folded.keys() == whole.keys()
    assert folded == pytest.approx(whole, rel=1e-5)


def test_statistics_are_of_the_tokens_that_the_loss_counts():
    engine = trained_engine()
    weights = np.array([0, 1, 1, 1, 2], np.float32)
    advantages = np.array([1, 1, 0, -1, 3], np.float32)
    q = np.array([-9, -4, -9, -5, -4.5], np.float32)
    (one,) = data_for("ppo", (5,), weights=weights, advantages=advantages, logprobs=q)
    output = engine.forward_backward("a", [one], "ppo")
    counted = [1, 3, 4]
    lp = output.loss_fn_outputs[0]["logprobs"].to_numpy().astype(float)[counted]
    ratio = np.exp(lp - q[counted])
    outside = (ratio < 0.8) | (ratio > 1.2)
    assert output.metrics == pytest.approx(
        {
            "loss:sum": output.metrics["loss:sum"],
            "num_tokens:sum": 5,
            "num_loss_tokens:sum": 3,
            "entropy:mean": -lp.mean(),
            "kl:mean": (q[counted] - lp).mean(),
            "ratio:mean": ratio.mean(),
            "ratio:min": ratio.min(),
            "ratio:max": ratio.max(),
            "clip_fraction:mean": outside.mean(),
        },
        rel=1e-6,
    )


def test_gspo_counts_as_clipped_the_tokens_of_sequences_whose_ratio_is():
    """Token by token the ratios differ widely; the sequence's lies between the thresholds."""
    engine = trained_engine()
    (one,) = data_for("gspo", (6,))
    lp = engine.forward_backward("a", [one], "gspo", THRESHOLDS, forward_only=True)
    lp = lp.loss_fn_outputs[0]["logprobs"].to_numpy()
    apart = np.array([1, -1, 2, -2, 3, -3], np.float32)
    inside = data_for("gspo", (6,), logprobs=lp + apart)
    metrics = engine.forward_backward("a", inside, "gspo", THRESHOLDS).metrics
    assert metrics["clip_fraction:mean"] == 0
    assert metrics["ratio:max"] == pytest.approx(math.exp(3), rel=1e-4)
    outside = data_for("gspo", (6,), logprobs=lp + apart - 1)
    metrics = engine.forward_backward("a", inside + outside, "gspo", THRESHOLDS).metrics
    assert metrics["clip_fraction:mean"] == 0.5


def test_call_that_counts_no_token_has_no_statistics_and_folding_it_leaves_them_out():
    engine = trained_engine()
    silent = engine.forward_backward(
        "a", data_for("ppo", (5,), advantages=np.zeros(5, np.float32)), "ppo"
    )
    assert silent.metrics == {"loss:sum": 0.0, "num_tokens:sum": 5.0, "num_loss_tokens:sum": 0.0}
    loud = engine.forward_backward("a", data_for("ppo", (5,)), "ppo")
    assert official([loud, silent]).keys() == COUNTS
    assert combine_outputs([silent, loud]).metrics == official([silent, loud])


@pytest.mark.parametrize("logprobs", [(-1e4, -1e4, -4), (-1e4,) * 3, (-1e4,) * 7])
def test_ratios_that_overflow_are_the_largest_number_and_their_mean_stays_one(logprobs):
    engine = trained_engine()
    given = np.array(logprobs, np.float32)
    (one,) = data_for("cispo", (len(given),), logprobs=given)
    metrics = engine.forward_backward("a", [one], "cispo").metrics
    assert metrics["ratio:max"] == np.finfo(np.float64).max
    assert all(math.isfinite(value) for value in metrics.values())
