"""The engine's front: names, bounds, and refusals that leave everything as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import (
    CONTEXT,
    VOCAB,
    datum,
    flat,
    gradient,
    job,
    sample,
    tiny_engine,
    tiny_model,
    tokens,
    trained_engine,
)

from tinkex.engine.engine import Engine
from tinkex.engine.models.loader import wrap_model
from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams, ImageChunk, LoraConfig, ModelInput, TensorData


def test_adapter_gives_back_its_configuration():
    engine = tiny_engine()
    lora = LoraConfig(rank=5, seed=3, train_attn=False)
    engine.create_adapter("x", lora)
    assert engine.adapter_config("x") == lora


def test_seed_decides_an_adapter_and_its_absence_does_not():
    engine = tiny_engine()
    for name, seed in (("a", 1), ("b", 1), ("c", None), ("d", None)):
        engine.create_adapter(name, LoraConfig(rank=2, seed=seed))
    assert torch.equal(flat(engine, "a"), flat(engine, "b"))
    assert not torch.equal(flat(engine, "c"), flat(engine, "d"))


def test_fresh_adapter_samples_like_the_base_model():
    engine = tiny_engine()
    engine.create_adapter("x", LoraConfig(rank=4))
    engine.snapshot_sampler("s", "x")
    found = sample(
        engine,
        job("base", tokens(5), seed=1, max_tokens=20),
        job("fresh", tokens(5), "s", seed=1, max_tokens=20),
    )
    base, fresh = (found[n].sequences[0] for n in ("base", "fresh"))
    assert np.array_equal(base.tokens_np, fresh.tokens_np)
    assert np.array_equal(base.logprobs_np, fresh.logprobs_np)


@pytest.mark.parametrize("rank", [-1, 0, 257])
def test_rank_out_of_bounds_is_refused(rank):
    with pytest.raises(InputError, match="rank must be between 1 and 256"):
        tiny_engine().create_adapter("x", LoraConfig(rank=rank))


def test_name_that_is_taken_is_refused():
    engine = trained_engine()
    with pytest.raises(InputError, match="exists already"):
        engine.create_adapter("a", LoraConfig(rank=4))


def test_too_many_adapters_are_the_servers_matter():
    engine = tiny_engine(max_adapters=1)
    engine.create_adapter("a", LoraConfig(rank=1))
    with pytest.raises(EngineError, match="at most 1 adapters"):
        engine.create_adapter("b", LoraConfig(rank=1))
    engine.remove_adapter("a")
    engine.create_adapter("b", LoraConfig(rank=1))


def test_removed_adapter_is_unknown():
    engine = trained_engine()
    engine.remove_adapter("a")
    engine.remove_adapter("a")
    with pytest.raises(InputError, match="unknown adapter 'a'"):
        engine.optim_step("a", AdamParams())


def test_training_lowers_the_loss_and_a_rate_of_zero_does_not():
    losses = {}
    for rate in (3e-3, 0.0):
        engine = tiny_engine()
        engine.create_adapter("x", LoraConfig(rank=8, seed=0))
        data = [datum(20, seed=i, weights=None) for i in range(3)]
        history = []
        for _ in range(20):
            history.append(engine.forward_backward("x", data, "cross_entropy").metrics["loss:sum"])
            engine.optim_step("x", AdamParams(learning_rate=rate))
        losses[rate] = history
    assert losses[3e-3][-1] < losses[3e-3][0] / 2
    assert losses[0.0][-1] == losses[0.0][0]


def test_calls_before_a_step_add_up():
    one, two = trained_engine(), trained_engine()
    data = [datum(n, seed=n) for n in (5, 9, 14)]
    one.forward_backward("a", data, "cross_entropy")
    for part in (data[:1], data[1:]):
        two.forward_backward("a", part, "cross_entropy")
    difference = (gradient(one, "a") - gradient(two, "a")).norm() / gradient(one, "a").norm()
    assert difference.item() < 1e-6
    for engine in (one, two):
        assert engine.optim_step("a", AdamParams())["grad_norm"] > 0
        assert engine.optim_step("a", AdamParams())["grad_norm"] == 0


@pytest.mark.parametrize(
    ("data", "loss_fn", "message"),
    [
        ([], "cross_entropy", "empty"),
        ([datum(3)], "no_such_loss", "unknown loss_fn"),
        ([datum(3), datum(4, target_tokens=[1, 2, 3, VOCAB])], "cross_entropy", "datum 1"),
        ([datum(CONTEXT + 1)], "cross_entropy", f"at most {CONTEXT}"),
        ([datum(2, weights=np.array([1, np.nan], np.float32))], "cross_entropy", "not finite"),
    ],
)
def test_bad_training_request_leaves_everything_as_it_was(data, loss_fn, message):
    engine = trained_engine()
    engine.forward_backward("a", [datum(5)], "cross_entropy")
    before = flat(engine, "a"), gradient(engine, "a")
    with pytest.raises(InputError, match=message):
        engine.forward_backward("a", data, loss_fn)
    assert torch.equal(flat(engine, "a"), before[0])
    assert torch.equal(gradient(engine, "a"), before[1])


IMAGE = ModelInput(chunks=[ImageChunk(data=b"x", format="png", expected_tokens=2)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [VOCAB]}, "outside the vocabulary"),
        ({"prompt": [2] * (CONTEXT + 1)}, f"at most {CONTEXT}"),
        ({"prompt": [2] * CONTEXT, "max_tokens": 2}, "room for 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"num_samples": 0}, "num_samples must be between 1"),
        ({"num_samples": 1025}, "num_samples must be between 1"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stop": "text"}, "no tokenizer"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": VOCAB + 1}, "topk_sample_logprobs"),
        ({"prompt_logprobs_last_n": -1}, "prompt_logprobs_last_n"),
        ({"prompt_alt_tokens_k": -1}, "prompt_alt_tokens_k"),
        ({"prompt_alt_tokens_k": 257}, "prompt_alt_tokens_k"),
        (
            {"target_prompt_logprobs": TensorData(np.array([[1]] * 4))},
            r"shape \[3, K\].* of shape \[4, 1\]",
        ),
        ({"target_prompt_logprobs": TensorData([1, 2, 3])}, r"shape \[3, K\]"),
        ({"target_prompt_logprobs": TensorData(np.array([[1.0]] * 3))}, "int64"),
        (
            {"target_prompt_logprobs": TensorData(np.array([[VOCAB], [1], [1]]))},
            "outside the vocabulary",
        ),
        (
            {"target_prompt_logprobs": TensorData(np.array([[-2], [1], [1]]))},
            "outside the vocabulary",
        ),
        ({"sequence_ids": ("x", "y")}, "2 sequence ids for 1 samples"),
        ({"sampler_id": "nobody"}, "unknown sampler"),
    ],
)
def test_bad_sampling_request_is_refused_and_others_go_on(options, message):
    engine = trained_engine()
    good = job("good", tokens(5), "a", seed=1, max_tokens=5)
    expected = sample(engine, good)
    engine.add_sample(good)
    with pytest.raises(InputError, match=message):
        engine.add_sample(job("bad", **{"prompt": tokens(4), **options}))
    assert engine.has_sampling_work()
    done = {}
    while engine.has_sampling_work():
        done |= {f.job_id: f.response for f in engine.step()}
    assert done["good"].sequences == expected["good"].sequences


def test_image_in_a_prompt_is_refused():
    one = job("j", tokens(3))
    bad = type(one)(job_id="j", sampler_id=None, prompt=IMAGE)
    with pytest.raises(InputError, match="'image'"):
        tiny_engine().add_sample(bad)


def test_job_id_in_use_is_refused():
    engine = tiny_engine()
    engine.add_sample(job("j", tokens(3), max_tokens=5))
    with pytest.raises(InputError, match="already there"):
        engine.add_sample(job("j", tokens(3)))


def test_prompt_that_fills_the_context_still_gives_one_token():
    found = sample(tiny_engine(), job("j", tokens(CONTEXT), max_tokens=1, prompt_logprobs=True))
    assert len(found["j"].sequences[0].tokens_np) == 1
    assert np.isfinite(found["j"].prompt_logprobs_np[1:]).all()


def test_context_may_be_set_smaller():
    engine = tiny_engine(max_context_length=10)
    assert engine.context_length == 10
    with pytest.raises(InputError, match="at most 10"):
        engine.add_sample(job("j", tokens(11)))


def test_threads_are_set_for_the_engine():
    before = torch.get_num_threads()
    try:
        engine = tiny_engine(threads=before + 1)
        assert torch.get_num_threads() == before + 1
        assert engine.numerics()["threads"] == str(before + 1)
    finally:
        torch.set_num_threads(before)


def test_bfloat16_base_trains_and_samples_close_to_float32():
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = tiny_engine(model=tiny_model().to(dtype))
        engine.create_adapter("x", LoraConfig(rank=4, seed=0))
        data = [datum(20, seed=1, weights=None)]
        first = engine.forward_backward("x", data, "cross_entropy").metrics["loss:sum"]
        engine.optim_step("x", AdamParams(learning_rate=1e-2))
        second = engine.forward_backward("x", data, "cross_entropy").metrics["loss:sum"]
        engine.snapshot_sampler("s", "x")
        one = sample(engine, job("j", tokens(5), "s", max_tokens=5, seed=1))["j"].sequences[0]
        assert np.isfinite(one.logprobs_np).all()
        results.append((first, second))
    assert results[0] == pytest.approx(results[1], rel=0.05)
    assert results[1][1] < results[1][0]


def test_stepping_without_work_does_nothing():
    assert tiny_engine().step() == []


def test_model_is_driven_by_one_engine_only():
    base = wrap_model(tiny_model(), name="tiny")
    Engine(base)
    with pytest.raises(EngineError, match="load it again"):
        Engine(base)
