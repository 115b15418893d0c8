"""Sampling from end to end on tiny models."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import (
    CONTEXT,
    VOCAB,
    datum,
    diverge,
    job,
    sample,
    tiny_engine,
    tiny_model,
    tokens,
    trained_engine,
)

from tinkex.errors import EngineError, TinkerError
from tinkex.types import Datum, ModelInput, TensorData


def completion(response, index=0):
    return response.sequences[index].tokens_np.tolist()


def drain(engine):
    """Run to the end; gives every finished job, errors too."""
    done = {}
    while engine.has_sampling_work():
        done |= {f.job_id: f for f in engine.step()}
    return done


def free_of_stop(**options):
    return {"stop": [], "max_tokens": 20, **options}


@pytest.mark.parametrize(
    "family", ["qwen3", "llama", "mistral", "gemma3_text", "qwen3_moe", "gpt_oss"]
)
def test_greedy_equals_generate(family):
    prompt = tokens(9)
    model = tiny_model(family)
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, 9, dtype=torch.long),
            max_new_tokens=70,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 9:]
    engine = tiny_engine(family)
    found = sample(engine, job("j", prompt, temperature=0.0, stop=[], max_tokens=70))
    assert completion(found["j"]) == expected.tolist()


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss"])
def test_sampled_logprobs_equal_the_training_forward(family):
    engine = trained_engine(family=family)
    prompt = tokens(11)
    jobs = [
        job(f"j{i}", prompt[: 5 + i], "a", seed=i, **free_of_stop(temperature=0.7, top_p=0.9))
        for i in range(4)
    ]
    for name, response in sample(engine, *jobs).items():
        start = prompt[: 5 + int(name[1:])]
        ids = start + completion(response)
        trained = engine.forward_backward(
            "a",
            [Datum(ModelInput.from_ints(ids[:-1]), {"target_tokens": ids[1:]})],
            "cross_entropy",
            forward_only=True,
        )
        expected = trained.loss_fn_outputs[0]["logprobs"].to_numpy()[len(start) - 1 :]
        np.testing.assert_allclose(response.sequences[0].logprobs_np, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss"])
def test_same_seed_gives_the_same_tokens_and_bits_alone_and_in_company(family):
    engine = trained_engine(family=family, max_running=7)
    jobs = [
        job(
            f"j{i}",
            tokens(3 + 5 * i, seed=i),
            (None, "a", "b")[i % 3],
            seed=i,
            num_samples=1 + i % 3,
            **free_of_stop(max_tokens=10 + 4 * i),
        )
        for i in range(9)
    ]
    together = sample(engine, *jobs)
    for one in jobs:
        alone = sample(engine, one)[one.job_id]
        for a, b in zip(alone.sequences, together[one.job_id].sequences, strict=True):
            assert np.array_equal(a.tokens_np, b.tokens_np)
            assert np.array_equal(a.logprobs_np, b.logprobs_np)


def test_samples_of_a_job_differ_and_a_seedless_job_is_drawn_anew():
    engine = tiny_engine()
    prompt = tokens(6)
    found = sample(
        engine,
        job("a", prompt, num_samples=3, seed=1, **free_of_stop()),
        job("b", prompt, **free_of_stop()),
        job("c", prompt, **free_of_stop()),
    )
    texts = [tuple(completion(found["a"], i)) for i in range(3)]
    assert len({*texts, tuple(completion(found["b"])), tuple(completion(found["c"]))}) == 5


def test_temperature_one_sampling_follows_the_softmax():
    """Chi-squared on first tokens over seeds; 14 degrees of freedom, 36.1 is one in a thousand."""
    engine = tiny_engine()
    prompt = tokens(5)
    found = sample(engine, job("j", prompt, num_samples=1000, seed=3, max_tokens=1, stop=[]))
    first = [completion(found["j"], i)[0] for i in range(1000)]
    with torch.no_grad():
        exact = tiny_model()(torch.tensor([prompt])).logits[0, -1].double().softmax(0).numpy()
    order = exact.argsort()[::-1]
    bins = [*order[:14].tolist()]
    counts = [first.count(t) for t in bins]
    expected = [1000 * exact[t] for t in bins]
    counts.append(1000 - sum(counts))
    expected.append(1000 - sum(expected))
    difference = np.array(counts) - np.array(expected)
    assert (difference**2 / np.array(expected)).sum() < 36.1


def test_stop_token_is_part_of_the_tokens():
    engine = tiny_engine()
    prompt = tokens(6)
    full = completion(sample(engine, job("j", prompt, seed=2, **free_of_stop()))["j"])
    stop = full[4]
    first = full.index(stop)
    found = sample(engine, job("j", prompt, seed=2, max_tokens=20, stop=[stop]))["j"].sequences[0]
    assert found.tokens_np.tolist() == full[: first + 1]
    assert found.stop_reason == "stop"
    assert len(found.logprobs_np) == first + 1


def test_absent_stop_ends_at_the_models_end_token():
    engine = tiny_engine()
    prompt = tokens(6)
    jobs = [job(f"j{i}", prompt, seed=i, max_tokens=100) for i in range(20)]
    ended = [r.sequences[0] for r in sample(engine, *jobs).values()]
    stopped = [s for s in ended if s.stop_reason == "stop"]
    assert stopped
    assert all(s.tokens_np[-1] == 1 and 1 not in s.tokens_np[:-1] for s in stopped)
    assert all(len(s.tokens_np) == 100 for s in ended if s.stop_reason == "length")


def test_absent_max_tokens_goes_to_the_end_of_the_context():
    engine = tiny_engine()
    found = sample(engine, job("j", tokens(100), stop=[]))["j"].sequences[0]
    assert len(found.tokens_np) == CONTEXT - 100 + 1
    assert found.stop_reason == "length"


def test_stop_strings_are_read_from_the_text(monkeypatch):
    class Letters:
        def decode(self, ids, *, skip_special_tokens):
            return "".join(chr(40 + i) for i in ids)

    engine = tiny_engine()
    object.__setattr__(engine.base, "__dict__", {**vars(engine.base), "tokenizer": Letters()})
    prompt = tokens(6)
    full = completion(sample(engine, job("j", prompt, seed=2, **free_of_stop()))["j"])
    text = "".join(chr(40 + i) for i in full[7:9])
    found = sample(engine, job("j", prompt, seed=2, max_tokens=20, stop=text))["j"].sequences[0]
    assert found.tokens_np.tolist() == full[:9]
    assert found.stop_reason == "stop"


def test_prompt_logprobs_and_their_alternatives():
    engine = trained_engine()
    prompt = tokens(12)
    found = sample(
        engine,
        job("j", prompt, "a", max_tokens=1, prompt_logprobs=True, topk_prompt_logprobs=3),
        job("other", tokens(30, seed=5), "b", max_tokens=5),
    )["j"]
    with torch.no_grad():
        output = engine.forward_backward(
            "a",
            [Datum(ModelInput.from_ints(prompt[:-1]), {"target_tokens": prompt[1:]})],
            "cross_entropy",
            forward_only=True,
        )
    expected = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    assert np.isnan(found.prompt_logprobs_np[0])
    np.testing.assert_allclose(found.prompt_logprobs_np[1:], expected, atol=1e-5)
    top = found.topk_prompt_logprobs_np
    assert top.token_ids.shape == top.logprobs.shape == (12, 3)
    assert top.token_ids[0].tolist() == [0, 0, 0]
    assert top.logprobs[0].tolist() == [-99999.0] * 3
    assert (np.diff(top.logprobs[1:], axis=1) <= 0).all()
    assert (top.logprobs[1:, 0] >= found.prompt_logprobs_np[1:] - 1e-6).all()


@pytest.mark.parametrize(("last", "known"), [(0, 0), (3, 3), (50, 5)])
def test_prompt_logprobs_of_the_last_tokens_alone(last, known):
    engine = tiny_engine()
    options = {"max_tokens": 1, "prompt_logprobs": True}
    found = sample(
        engine,
        job("part", tokens(6), prompt_logprobs_last_n=last, topk_prompt_logprobs=2, **options),
        job("all", tokens(6), **options),
    )
    part = found["part"].prompt_logprobs_np
    assert np.isnan(part[: 6 - known]).all()
    assert np.array_equal(part[6 - known :], found["all"].prompt_logprobs_np[6 - known :])


def test_prompt_logprobs_are_absent_unless_asked_for():
    found = sample(tiny_engine(), job("j", tokens(4), max_tokens=1))["j"]
    assert found.prompt_logprobs_np is None
    assert found.topk_prompt_logprobs_np is None
    assert found.sequences[0].topk_logprobs_np is None


def test_alternatives_of_sampled_tokens():
    engine = tiny_engine()
    found = sample(
        engine,
        job("j", tokens(4), topk_sample_logprobs=2, temperature=0.0, **free_of_stop()),
        job("k", tokens(4), topk_sample_logprobs=5, seed=1, **free_of_stop()),
    )
    one = found["j"].sequences[0]
    assert one.topk_logprobs_np.token_ids.shape == (20, 2)
    assert np.array_equal(one.topk_logprobs_np.token_ids[:, 0], one.tokens_np)
    np.testing.assert_allclose(one.topk_logprobs_np.logprobs[:, 0], one.logprobs_np, atol=1e-6)
    assert found["k"].sequences[0].topk_logprobs_np.token_ids.shape == (20, 5)


def test_full_vocabulary_of_alternatives_sums_to_one():
    found = sample(tiny_engine(), job("j", tokens(4), topk_sample_logprobs=VOCAB, max_tokens=2))
    total = np.exp(found["j"].sequences[0].topk_logprobs_np.logprobs).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def test_more_samples_than_fit_run_in_turns():
    engine = tiny_engine(max_running=3, kv_cache_tokens=200)
    prompt = tokens(70)
    wide = sample(tiny_engine(), job("j", prompt, num_samples=8, seed=1, **free_of_stop()))
    narrow = sample(engine, job("j", prompt, num_samples=8, seed=1, **free_of_stop()))
    for i in range(8):
        assert completion(wide["j"], i) == completion(narrow["j"], i)
    assert engine._generator._cache.open_rows == 0


def test_sequences_carry_their_names():
    found = sample(
        tiny_engine(),
        job("j", tokens(4), num_samples=2, max_tokens=1, sequence_ids=("x", "y")),
        job("k", tokens(4), num_samples=2, max_tokens=1),
    )
    assert [s.sequence_id for s in found["j"].sequences] == ["x", "y"]
    assert [s.sequence_id for s in found["k"].sequences] == ["k:0", "k:1"]


def test_sampler_keeps_its_weights_while_training_goes_on():
    engine = trained_engine()
    one = job("j", tokens(5), "a", seed=1, **free_of_stop())
    before = completion(sample(engine, one)["j"])
    with torch.no_grad():
        engine._pool.adapter("a").weights.flat.normal_()
    assert completion(sample(engine, one)["j"]) == before


def test_removed_sampler_serves_what_runs_with_it():
    engine = trained_engine()
    one = job("j", tokens(5), "a", seed=1, **free_of_stop())
    expected = completion(sample(engine, one)["j"])
    engine.add_sample(one)
    engine.step()
    engine.remove_sampler("a")
    assert completion(drain(engine)["j"].response) == expected


@pytest.mark.parametrize("num_samples", [1, 4])
def test_base_model_is_itself_after_a_sampler_that_is_gone(num_samples):
    def of_base(engine):
        one = job("b", tokens(5), num_samples=num_samples, max_tokens=8, stop=[], seed=1)
        found = sample(engine, one)["b"].sequences
        return [(s.tokens_np.tobytes(), s.logprobs_np.tobytes()) for s in found]

    engine = trained_engine()
    sample(engine, job("x", tokens(6), "a", num_samples=num_samples, max_tokens=3, stop=[]))
    engine.remove_sampler("a")
    assert of_base(engine) == of_base(trained_engine())


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_cancelled_job_is_gone_and_disturbs_nobody(steps):
    engine = trained_engine(max_running=4)
    stays = job("stays", tokens(5), "a", seed=1, num_samples=2, **free_of_stop())
    expected = sample(engine, stays)["stays"]
    engine.add_sample(job("goes", tokens(9), "a", num_samples=6, **free_of_stop()))
    engine.add_sample(stays)
    for _ in range(steps):
        engine.step()
    engine.cancel_sample("goes")
    engine.cancel_sample("goes")
    done = drain(engine)
    assert set(done) == {"stays"}
    assert done["stays"].response.sequences == expected.sequences
    assert engine._generator._cache.open_rows == 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss"])
def test_weights_that_diverged_fail_their_job_alone(family):
    engine = trained_engine(family=family)
    good = job("good", tokens(5), "a", seed=1, num_samples=3, **free_of_stop())
    expected = sample(engine, good)["good"]
    diverge(engine, "b")
    engine.add_sample(good)
    engine.add_sample(job("bad", tokens(5), "b", num_samples=3, **free_of_stop()))
    done = drain(engine)
    assert isinstance(done["bad"].error, EngineError)
    assert "diverged" in str(done["bad"].error)
    assert done["good"].response.sequences == expected.sequences
    assert sample(engine, good)["good"].sequences == expected.sequences
    assert engine._generator._cache.open_rows == 0


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "gpt_oss"])
def test_weights_that_diverge_in_midstream_leave_no_nan_behind(family):
    engine = trained_engine(family=family)
    good = job("good", tokens(5), "a", seed=1, num_samples=3, **free_of_stop())
    expected = sample(engine, good)["good"]
    engine.add_sample(job("bad", tokens(5), "b", **free_of_stop()))
    engine.add_sample(good)
    engine.step()
    engine.step()
    diverge(engine, "b")
    done = drain(engine)
    assert done["bad"].error.category == "server"
    assert done["good"].response.sequences == expected.sequences
    assert sample(engine, good)["good"].sequences == expected.sequences


def test_what_diverges_as_another_sample_ends_harms_nobody_later():
    """The row of the one that ends is filled with the last one, whose old place is free then."""
    engine = trained_engine(prefix_cache_tokens=0)
    engine.add_sample(job("ends", tokens(30), **{**free_of_stop(), "max_tokens": 3}))
    engine.add_sample(job("bad", tokens(31), "a", **free_of_stop()))
    engine.step()
    engine.step()
    diverge(engine, "a")
    done = drain(engine)
    assert done["ends"].error is None
    assert done["bad"].error.category == "server"
    later = sample(engine, *(job(f"j{i}", tokens(4 + i), **free_of_stop()) for i in range(2)))
    assert len(later) == 2


def test_failure_to_start_samples_fails_their_job_alone(monkeypatch):
    engine = trained_engine()
    one = job("one", tokens(5), "a", seed=1, **free_of_stop())
    expected = sample(engine, one)["one"]
    engine.add_sample(job("many", tokens(5), "a", num_samples=3, **free_of_stop()))
    monkeypatch.setattr(engine._generator._cache, "fork", _explode)
    assert isinstance(drain(engine)["many"].error, EngineError)
    assert sample(engine, one)["one"].sequences == expected.sequences
    assert engine._generator._scheduler._reserved == 0
    assert engine._generator._cache.open_rows == 0


@pytest.mark.parametrize("steps", [0, 3])
def test_failure_of_the_computation_fails_its_jobs_and_the_engine_goes_on(monkeypatch, steps):
    engine = trained_engine()
    one = job("j", tokens(5), "a", seed=1, num_samples=2, **free_of_stop())
    expected = sample(engine, one)["j"]
    engine.add_sample(one)
    for _ in range(steps):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "hidden", _explode)
        done = drain(engine)
    assert isinstance(done["j"].error, TinkerError)
    assert "out of memory" in str(done["j"].error)
    assert sample(engine, one)["j"].sequences == expected.sequences


def _explode(*args, **kwargs):
    raise RuntimeError("out of memory")


def test_training_between_steps_changes_no_sample():
    engine = trained_engine()
    one = job("j", tokens(5), "a", seed=1, num_samples=2, **free_of_stop())
    expected = sample(engine, one)["j"]
    engine.add_sample(one)
    done = {}
    while engine.has_sampling_work():
        done |= {f.job_id: f.response for f in engine.step()}
        engine.forward_backward("b", [datum(9)], "cross_entropy")
    assert done["j"].sequences == expected.sequences


def test_samplers_without_the_unembedding_work_beside_those_with_it():
    engine = trained_engine(unembed=False)
    from tinkex.types import LoraConfig

    engine.create_adapter("c", LoraConfig(rank=2, seed=9))
    engine.snapshot_sampler("c", "c")
    jobs = [job(n, tokens(5), n, seed=1, **free_of_stop()) for n in ("a", "b", "c")]
    together = sample(engine, *jobs)
    for one in jobs:
        assert sample(engine, one)[one.job_id].sequences == together[one.job_id].sequences


def test_tensor_dtypes_are_those_of_the_wire():
    one = sample(tiny_engine(), job("j", tokens(5), max_tokens=2))["j"].sequences[0]
    assert one.tokens_np.dtype == np.int32
    assert one.logprobs_np.dtype == np.float32
    assert TensorData.from_numpy(one.logprobs_np).dtype == "float32"
