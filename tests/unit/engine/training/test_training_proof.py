"""Calls of forward_backward against a plain double-precision model, and the laws they keep."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_support import VOCAB, datum, flat, gradient, shake, tiny_engine, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import CASES, CLIPPED, THRESHOLDS, reference
from peft import LoraConfig as PeftConfig
from peft import get_peft_model

from tinkex.client.loss_handle import trace
from tinkex.engine.training.graph_loss import GraphLoss
from tinkex.errors import InputError
from tinkex.types import AdamParams, DimuonParams, LoraConfig

DENSE = ["qwen2", "mistral", "gemma3_text", "phi3", "phi", "olmo2", "smollm3"]
"""Families whose every linear layer PEFT adapts as we do; experts have tests of their own."""
RANK = 4
proof = partial(settings, deadline=None, derandomize=True, database=None)


def engine_with(family="qwen3", *names, **options):
    engine = tiny_engine(family, **options)
    for number, name in enumerate(names or ("a",)):
        engine.create_adapter(name, LoraConfig(rank=RANK + number, seed=number))
        shake(engine, name, seed=number)
    return engine


def data_for(loss_fn, lengths, seed=0, **inputs):
    """Data with what a loss reads; a few weights are zero."""
    rng = np.random.default_rng(seed)
    data = []
    for index, length in enumerate(lengths):
        more = dict(inputs)
        if loss_fn == "gspo":
            more["sequence_ratio_mask"] = (rng.random(length) > 0.3).astype(np.float32)
        if loss_fn != "cross_entropy":
            more["weights"] = rng.normal(size=length).astype(np.float32)
            more["weights"][: length // 4] = 0
        data.append(datum(length, seed=1000 * seed + index, loss_fn=loss_fn, **more))
    return data


# --- against a double-precision model ------------------------------------------------------------


def double_twin(engine, family):
    """The same model and adapter in transformers and PEFT, in float64, ready for autograd."""
    linears = sorted({name.split(".")[-1] for name in engine._pool.adapter("a").weights.pairs})
    config = PeftConfig(r=RANK, lora_alpha=32, target_modules=linears, lora_dropout=0.0)
    twin = get_peft_model(tiny_model(family), config).eval().double()
    named = dict(twin.named_parameters())
    factors = []
    for name, pair in engine._pool.adapter("a").weights.pairs.items():
        for letter, factor in (("A", pair.a), ("B", pair.b)):
            parameter = named[f"base_model.model.{name}.lora_{letter}.default.weight"]
            with torch.no_grad():
                parameter.copy_(factor)
            factors.append(parameter)
    return twin, factors


def exact_result(twin, factors, data, loss_of):
    """Compute by full logits, one datum at a time: (loss, logprobs by datum, flat gradient)."""
    total, logprobs = 0.0, []
    for one in data:
        ids = torch.tensor([one.model_input.to_ints()])
        fields = {k: torch.from_numpy(v.to_numpy()) for k, v in one.loss_fn_inputs.items()}
        fields = {k: v if v.ndim == 2 else v[:, None] for k, v in fields.items()}
        lp = twin(ids).logits[0].log_softmax(-1).gather(1, fields.pop("target_tokens"))
        total = total + loss_of(lp, {k: v.double() for k, v in fields.items()})
        logprobs.append(lp.detach())
    grads = torch.autograd.grad(total, factors)
    return total.item(), logprobs, torch.cat([g.flatten() for g in grads])


def assert_equal(engine, output, expected):
    loss, logprobs, grads = expected
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=2e-5, abs=1e-5)
    for found, exact in zip(output.loss_fn_outputs, logprobs, strict=True):
        array = found["logprobs"].to_numpy()
        np.testing.assert_allclose(array.reshape(exact.shape), exact.numpy(), atol=1e-5)
    found = gradient(engine, "a").double()
    assert ((found - grads).norm() / grads.norm()).item() < 1e-5


peft_warns = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@peft_warns
@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize(("name", "config"), CASES)
def test_loss_and_gradient_equal_the_formula_on_a_double_precision_model(family, name, config):
    engine = engine_with(family)
    data = data_for(name, (7, 12, 7, 1, 30))
    output = engine.forward_backward("a", data, name, config)

    def loss_of(lp, fields):
        return reference(name, lp, fields, config).sum()

    assert_equal(engine, output, exact_result(*double_twin(engine, family), data, loss_of))


@peft_warns
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("family", DENSE)
def test_gradient_through_each_family_equals_the_double_precision_model(family):
    engine = engine_with(family)
    data = data_for("ppo", (7, 12, 7, 1, 30))
    output = engine.forward_backward("a", data, "ppo")

    def loss_of(lp, fields):
        return reference("ppo", lp, fields, {}).sum()

    assert_equal(engine, output, exact_result(*double_twin(engine, family), data, loss_of))


@peft_warns
@pytest.mark.parametrize("name", CLIPPED)
def test_thresholds_of_each_token_reach_the_loss(name):
    engine = engine_with()
    rng = np.random.default_rng(1)
    lengths = (5, 9)
    data = []
    for seed, length in enumerate(lengths):
        limits = {"clip_high_threshold": 1 + rng.random(length).astype(np.float32)}
        if name != "stable_reinforce":
            limits["clip_low_threshold"] = rng.random(length).astype(np.float32)
        near = {"logprobs": rng.normal(-4.6, 0.5, length).astype(np.float32)}
        data += data_for(name, (length,), seed, **limits, **near)
    config = {"gspo": THRESHOLDS}.get(name, {})
    output = engine.forward_backward("a", data, name, config)

    def loss_of(lp, fields):
        return reference(name, lp, fields, config).sum()

    assert_equal(engine, output, exact_result(*double_twin(engine, "qwen3"), data, loss_of))


@peft_warns
@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_soft_targets_equal_the_formula(layout):
    engine = engine_with()
    rng = np.random.default_rng(2)
    data = []
    for length, width in ((9, 5), (6, 8), (4, 1)):
        targets = rng.integers(2, VOCAB, (length, width))
        weights = rng.normal(size=(length, width)).astype(np.float32)
        gone = rng.random((length, width)) > 0.4 - 0.25 * (width > 1)  # some rows have no target
        targets[gone], weights[gone] = 0, 0
        sent = {"target_tokens": targets, "weights": weights}
        one = datum(length, seed=width, **sent)
        if layout == "sparse":
            for key, value in one.loss_fn_inputs.items():
                one.loss_fn_inputs[key] = value.to_sparse()
            is_sparse = one.loss_fn_inputs["weights"].sparse_crow_indices is not None
            assert is_sparse == (width > 1)
        data.append(one)
    output = engine.forward_backward("a", data, "cross_entropy")

    def loss_of(lp, fields):
        return reference("cross_entropy", lp, fields, {}).sum()

    assert_equal(engine, output, exact_result(*double_twin(engine, "qwen3"), data, loss_of))


def shaped(logprobs, advantages, weights):
    ratio = torch.exp(logprobs - advantages)
    held = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    spread = ((logprobs - logprobs.mean()) ** 2).mean().sqrt()
    return -(held * weights).sum() + 0.1 * spread + torch.logsumexp(logprobs, dim=0), {}


def cubic(logprobs, advantages, weights):
    kept = logprobs[weights != 0]
    loss = (kept**3).sum() * 1e-2 - (torch.sigmoid(logprobs) * advantages).mean()
    return loss, {"custom/kept:sum": kept.sum()}


@peft_warns
@pytest.mark.parametrize("fn", [shaped, cubic])
def test_graph_of_a_user_equals_the_same_function_in_double_precision(fn):
    engine = engine_with()
    data = data_for("importance_sampling", (7, 12, 2, 30), logprobs=None)
    handle = trace(fn, {"logprobs": 1, "advantages": 1, "weights": 1})
    graph = GraphLoss(handle.name, handle.inputs, handle.encode())
    output = engine.forward_backward("a", data, "custom", graph=graph)

    def loss_of(lp, fields):
        return fn(lp[:, 0], fields["advantages"][:, 0], fields["weights"][:, 0])[0]

    assert_equal(engine, output, exact_result(*double_twin(engine, "qwen3"), data, loss_of))


EXTREMES = {
    "-inf": {"logprobs": np.full(3, -np.inf, np.float32)},
    "ratio that overflows": {
        "logprobs": np.full(3, -1e4, np.float32),
        "advantages": np.full(3, -1, np.float32),
    },
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "gspo"])
def test_what_no_float_holds_is_refused_and_leaves_no_gradient(name, case):
    engine = engine_with()
    config = {"gspo": THRESHOLDS}.get(name, {})
    data = [*data_for(name, (5,)), *data_for(name, (3,), **EXTREMES[case])]
    with pytest.raises(InputError, match="datum 1"):
        engine.forward_backward("a", data, name, config)
    assert engine._pool.adapter("a").gradient is None


def test_ppo_learns_from_the_rest_of_a_batch_where_one_ratio_overflows_and_is_clipped():
    wild = np.array([-1e4, -4, -4], np.float32)
    gains = np.array([1, 0.5, -0.5], np.float32)
    engine, other = engine_with(), engine_with()
    engine.forward_backward("a", [datum(3, loss_fn="ppo", logprobs=wild, advantages=gains)], "ppo")
    gains[0] = 0  # what is clipped has no gradient, as what has no advantage
    other.forward_backward("a", [datum(3, loss_fn="ppo", logprobs=wild, advantages=gains)], "ppo")
    assert torch.equal(gradient(engine, "a"), gradient(other, "a"))
    assert gradient(engine, "a").abs().max() > 0


# --- laws ----------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6)
LOSSES_WITH_SETTINGS = st.sampled_from(CASES)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@proof(max_examples=25)
@given(LENGTHS, LOSSES_WITH_SETTINGS, st.sampled_from([1, 150 * VOCAB, 10**6]), st.integers(1, 200))
def test_chunks_of_the_head_and_microbatches_change_nothing(lengths, case, chunk, microbatch):
    name, config = case
    data = data_for(name, lengths)
    whole, cut = (
        engine_with(head_chunk_elements=elements, microbatch_tokens=budget)
        for elements, budget in ((10**7, 4096), (chunk, microbatch))
    )
    one, other = (e.forward_backward("a", data, name, config) for e in (whole, cut))
    assert relative(gradient(cut, "a"), gradient(whole, "a")) < 1e-6
    for a, b in zip(one.loss_fn_outputs, other.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(a["logprobs"].to_numpy(), b["logprobs"].to_numpy(), atol=1e-6)
    assert one.metrics.keys() == other.metrics.keys()
    for key, value in one.metrics.items():
        assert other.metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-5)


WITH_CUSTOM = st.sampled_from([*CASES, ("custom", {})])
RUNS = st.lists(st.tuples(LENGTHS, WITH_CUSTOM), min_size=2, max_size=4)


def call_of(loss_fn, lengths, seed, config):
    """The arguments of a call, behind the adapter's name, and its options."""
    if loss_fn != "custom":
        return (data_for(loss_fn, lengths, seed), loss_fn, config), {}
    handle = trace(shaped, {"logprobs": 1, "advantages": 1, "weights": 1})
    graph = GraphLoss(handle.name, handle.inputs, handle.encode())
    data = data_for("importance_sampling", lengths, seed, logprobs=None)
    return (data, "custom"), {"graph": graph}


@proof(max_examples=20)
@given(RUNS, st.sampled_from([16, 64, 1024]))
def test_company_changes_no_bit_of_a_run(runs, microbatch):
    names = "abcd"[: len(runs)]
    together = engine_with("qwen3", *names, microbatch_tokens=microbatch)
    tasks = []
    for number, (name, (lengths, (loss_fn, config))) in enumerate(zip(names, runs, strict=True)):
        call, options = call_of(loss_fn, lengths, number, config)
        tasks.append(together.begin_forward_backward(name, *call, **options))
    while any(not task.finished for task in tasks):
        together.run_together([task for task in tasks if task.joins])
    alone = engine_with("qwen3", *names, microbatch_tokens=microbatch)
    for number, (name, (lengths, (loss_fn, config))) in enumerate(zip(names, runs, strict=True)):
        call, options = call_of(loss_fn, lengths, number, config)
        expected = alone.forward_backward(name, *call, **options)
        found = tasks[number].result()
        assert found.metrics == expected.metrics
        assert found.loss_fn_outputs == expected.loss_fn_outputs
        assert torch.equal(gradient(together, name), gradient(alone, name))


@proof(max_examples=20)
@given(st.lists(LENGTHS, min_size=2, max_size=4), LOSSES_WITH_SETTINGS)
def test_gradients_of_several_calls_add_up_to_that_of_one(calls, case):
    name, config = case
    parts = [data_for(name, lengths, number) for number, lengths in enumerate(calls)]
    one, several = engine_with(), engine_with()
    joined = [datum for part in parts for datum in part]
    whole = one.forward_backward("a", joined, name, config).metrics
    found = [several.forward_backward("a", part, name, config).metrics for part in parts]
    assert relative(gradient(several, "a"), gradient(one, "a")) < 1e-6
    for key in ("loss:sum", "num_tokens:sum", "num_loss_tokens:sum"):
        assert sum(m[key] for m in found) == pytest.approx(whole[key], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_calls_that_are_a_microbatch_each_add_up_bit_for_bit(name, config):
    data = data_for(name, (9, 9, 9, 9))
    one, several = engine_with(microbatch_tokens=9), engine_with(microbatch_tokens=9)
    one.forward_backward("a", data, name, config)
    for datum_of_its_own in data:
        several.forward_backward("a", [datum_of_its_own], name, config)
    assert torch.equal(gradient(several, "a"), gradient(one, "a"))


@proof(max_examples=12)
@given(
    LOSSES_WITH_SETTINGS,
    st.sampled_from(["adamw", "dimuon"]),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_saving_loading_and_going_on_is_not_stopping_bit_for_bit(case, optimizer, before, after):
    name, config = case
    if optimizer == "dimuon":
        params = DimuonParams(learning_rate=1e-2, grad_clip_norm=1.0)
    else:
        params = AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=1.0)

    def step(engine, run, number):
        for call in range(2):
            data = data_for(name, (5, 9), 10 * number + call)
            engine.forward_backward(run, data, name, config)
        engine.optim_step(run, params)

    def started():
        engine = tiny_engine()
        engine.create_adapter("a", LoraConfig(rank=RANK, seed=0), optimizer=optimizer)
        shake(engine, "a")
        for number in range(before):
            step(engine, "a", number)
        return engine

    straight, stopped, resumed = started(), started(), tiny_engine()
    with tempfile.TemporaryDirectory() as folder:
        stopped.save_adapter("a", Path(folder) / "c", optimizer=True)
        resumed.load_adapter("again", Path(folder) / "c", optimizer=True)
    for number in range(before, before + after):
        step(straight, "a", number)
        step(resumed, "again", number)
    assert torch.equal(flat(straight, "a"), flat(resumed, "again"))
