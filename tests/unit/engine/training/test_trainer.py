"""forward_backward: what it gives, what it leaves behind, and how it fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import datum, flat, gradient, shake, tiny_engine, tiny_model, trained_engine

from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams, LoraConfig


def batch(loss_fn="cross_entropy"):
    return [datum(n, seed=n, loss_fn=loss_fn) for n in (7, 12, 7, 3, 30)]


@pytest.mark.parametrize(
    "flags",
    [
        {"train_mlp": False, "train_unembed": False},
        {"train_attn": False, "train_unembed": False},
        {"train_attn": False, "train_mlp": False},
    ],
)
def test_each_group_of_layers_trains_alone(flags):
    engine = tiny_engine()
    engine.create_adapter("a", LoraConfig(rank=4, seed=0, **flags))
    shake(engine, "a")
    before = flat(engine, "a")
    first = engine.forward_backward("a", batch(), "cross_entropy").metrics["loss:sum"]
    engine.optim_step("a", AdamParams(learning_rate=1e-3))
    second = engine.forward_backward("a", batch(), "cross_entropy").metrics["loss:sum"]
    assert second < first
    assert (flat(engine, "a") != before).all()


def test_outputs_keep_order_shape_and_dtype():
    engine = trained_engine()
    data = batch()
    output = engine.forward_backward("a", data, "cross_entropy")
    assert output.loss_fn_output_type == "ArrayRecord"
    assert output.metrics["num_tokens:sum"] == 59
    for one, record in zip(data, output.loss_fn_outputs, strict=True):
        for name in ("logprobs", "elementwise_loss"):
            array = record[name].to_numpy()
            assert array.dtype == np.float32
            assert array.shape == (one.model_input.length,)
        expected = -record["logprobs"].to_numpy() * one.loss_fn_inputs["weights"].to_numpy()
        np.testing.assert_allclose(record["elementwise_loss"].to_numpy(), expected, rtol=1e-6)
    total = sum(r["elementwise_loss"].to_numpy().sum(dtype=float) for r in output.loss_fn_outputs)
    assert output.metrics["loss:sum"] == pytest.approx(total)


def test_soft_targets_equal_their_columns_one_by_one():
    engine = trained_engine()
    rng = np.random.default_rng(0)
    targets = rng.integers(2, 90, (9, 3))
    weights = rng.random((9, 3)).astype(np.float32)
    soft = datum(9, target_tokens=targets, weights=weights)
    together = engine.forward_backward("a", [soft, datum(4)], "cross_entropy")
    assert together.loss_fn_outputs[0]["logprobs"].to_numpy().shape == (9, 3)
    assert together.loss_fn_outputs[1]["logprobs"].to_numpy().shape == (4,)
    joint = gradient(engine, "a")
    engine._pool.adapter("a").gradient = None
    for k in range(3):
        column = datum(9, target_tokens=targets[:, k], weights=weights[:, k])
        found = engine.forward_backward("a", [column], "cross_entropy").loss_fn_outputs[0]
        np.testing.assert_allclose(
            found["logprobs"].to_numpy(),
            together.loss_fn_outputs[0]["logprobs"].to_numpy()[:, k],
            atol=1e-6,
        )
    engine.forward_backward("a", [datum(4)], "cross_entropy")
    torch.testing.assert_close(gradient(engine, "a"), joint, rtol=1e-4, atol=1e-4)


def test_packing_and_microbatches_change_nothing_beyond_rounding():
    results = []
    for settings in ({}, {"microbatch_tokens": 8}, {"head_chunk_elements": 1}):
        engine = trained_engine(**settings)
        output = engine.forward_backward("a", batch(), "cross_entropy")
        results.append((gradient(engine, "a"), output))
    engine = trained_engine()
    for one in batch():
        alone = engine.forward_backward("a", [one], "cross_entropy")
    results.append((gradient(engine, "a"), None))
    for other, output in results[1:]:
        difference = (other - results[0][0]).norm() / results[0][0].norm()
        assert difference.item() < 1e-6
        if output is not None:
            same = output.loss_fn_outputs[3]["logprobs"].to_numpy()
            np.testing.assert_allclose(
                same, results[0][1].loss_fn_outputs[3]["logprobs"].to_numpy(), atol=1e-6
            )
    expected = results[0][1].loss_fn_outputs[-1]["logprobs"].to_numpy()
    np.testing.assert_allclose(alone.loss_fn_outputs[0]["logprobs"].to_numpy(), expected, atol=1e-6)


def test_forward_only_gives_the_same_numbers_and_no_gradient():
    engine = trained_engine()
    with_gradient = engine.forward_backward("a", batch(), "cross_entropy")
    engine._pool.adapter("a").gradient = None
    without = engine.forward_backward("a", batch(), "cross_entropy", forward_only=True)
    assert engine._pool.adapter("a").gradient is None
    for one, other in zip(with_gradient.loss_fn_outputs, without.loss_fn_outputs, strict=True):
        assert np.array_equal(one["logprobs"].to_numpy(), other["logprobs"].to_numpy())


def test_interleaved_runs_change_no_bit_of_each_other():
    alone = trained_engine(microbatch_tokens=12)
    alone.forward_backward("a", batch(), "cross_entropy")
    both = trained_engine(microbatch_tokens=12)
    tasks = [both.begin_forward_backward(n, batch(), "cross_entropy") for n in ("a", "b")]
    while not all(task.run_microbatch() for task in tasks):
        pass
    assert torch.equal(gradient(alone, "a"), gradient(both, "a"))


def test_abandoned_task_leaves_no_trace():
    engine = trained_engine(microbatch_tokens=12)
    task = engine.begin_forward_backward("a", batch(), "cross_entropy")
    assert not task.run_microbatch()
    assert engine._pool.adapter("a").gradient is None
    with pytest.raises(EngineError, match="left to run"):
        task.result()


def test_task_of_replaced_weights_commits_nowhere(tmp_path):
    engine = trained_engine(microbatch_tokens=12)
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    task = engine.begin_forward_backward("a", batch(), "cross_entropy")
    engine.load_adapter("a", tmp_path / "c", optimizer=False)
    while not task.run_microbatch():
        pass
    assert engine._pool.adapter("a").gradient is None


def test_loss_that_overflows_is_the_callers_fault_and_leaves_no_trace():
    engine = trained_engine()
    engine.forward_backward("a", batch("ppo"), "ppo")
    before = gradient(engine, "a")
    data = batch("importance_sampling")
    data[3] = datum(3, loss_fn="importance_sampling", logprobs=np.full(3, -1e4, np.float32))
    with pytest.raises(InputError, match="datum 3: the loss importance_sampling overflows"):
        engine.forward_backward("a", data, "importance_sampling")
    assert torch.equal(gradient(engine, "a"), before)


def test_gradient_that_overflows_leaves_no_trace():
    engine = trained_engine()
    huge = datum(5, weights=np.full(5, 3e37, np.float32))
    with pytest.raises(InputError, match="not finite"):
        engine.forward_backward("a", [huge], "cross_entropy")
    assert engine._pool.adapter("a").gradient is None


def test_weights_that_diverged_fail_as_the_servers_fault_and_harm_nobody():
    engine = trained_engine()
    with torch.no_grad():
        engine._pool.adapter("b").weights.flat.fill_(torch.nan)
    with pytest.raises(EngineError, match="diverged"):
        engine.forward_backward("b", batch(), "cross_entropy")
    assert engine._pool.adapter("b").gradient is None
    clean = trained_engine()
    for one in (engine, clean):
        one.forward_backward("a", batch(), "cross_entropy")
    assert torch.equal(gradient(engine, "a"), gradient(clean, "a"))


def test_failed_task_keeps_failing_with_the_same_error():
    engine = trained_engine()
    bad = datum(3, loss_fn="importance_sampling", logprobs=np.full(3, -1e4, np.float32))
    task = engine.begin_forward_backward("a", [bad], "importance_sampling")
    for call in (task.run_microbatch, task.run_microbatch, task.result):
        with pytest.raises(InputError, match="overflows"):
            call()
    assert task.finished


def test_failure_of_the_computation_is_an_engine_error(monkeypatch):
    engine = trained_engine()

    def explode(*args, **kwargs):
        raise RuntimeError("out of memory\nlong trace")

    monkeypatch.setattr(engine._runner, "hidden", explode)
    with pytest.raises(EngineError, match=r"training computation failed: out of memory; send less"):
        engine.forward_backward("a", batch(), "cross_entropy")


def test_other_adapter_is_untouched_bit_for_bit():
    engine = trained_engine()
    before = flat(engine, "b")
    engine.forward_backward("a", batch(), "cross_entropy")
    engine.optim_step("a", AdamParams(learning_rate=0.1))
    assert torch.equal(flat(engine, "b"), before)
    assert engine._pool.adapter("b").gradient is None


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "qwen3_moe"])
@pytest.mark.parametrize("weight", [2.0**-24, 2.0**20])
def test_gradient_in_float16_keeps_its_digits_whatever_the_weights(family, weight):
    """As of a mean over millions of tokens; alone, and beside a run of another size."""
    model = tiny_model(family).to(torch.float16)
    engine = tiny_engine(model=model, dtype="float16")
    for i, name in enumerate(("a", "b")):
        engine.create_adapter(name, LoraConfig(rank=4, seed=i))
        shake(engine, name, seed=i)

    def task(name, value):
        weights = np.full(9, value, np.float32)
        return engine.begin_forward_backward(name, [datum(9, weights=weights)], "cross_entropy")

    task("a", 1.0).run_microbatch()
    expected = gradient(engine, "a").double() * weight
    for company in ([], [task("b", 1.0)]):
        engine._pool.adapter("a").gradient = None
        engine.run_together([task("a", weight), *company])
        found = gradient(engine, "a").double()
        assert float((found - expected).norm() / expected.norm()) < 5e-3
