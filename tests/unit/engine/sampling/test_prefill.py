"""Prompts through their lives: in chunks, in turns, cancelled, failing, and in any mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import diverge, job, sample, tiny_model, tokens
from prompt_support import OPTIONS, counts, engine_of, explode, finish, kept_bytes, prefix_of, same

from tinkex.engine.models.head import Head
from tinkex.errors import EngineError

# --- jobs that end early ------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 6])
def test_cancelled_job_leaves_nothing_wrong_behind(steps):
    prompt = tokens(100)
    one = job("j", prompt, **OPTIONS)
    expected = sample(engine_of(), one)["j"]
    engine = engine_of(prefill_tokens=32)
    engine.add_sample(job("goes", prompt, num_samples=3, **OPTIONS))
    engine.add_sample(one)
    for _ in range(steps):
        engine.step()
    engine.cancel_sample("goes")
    done = finish(engine)
    assert set(done) == {"j"}
    same(done["j"].response, expected)
    assert engine._generator._scheduler.free_tokens == 65_536
    assert engine._generator._cache.open_rows == 0
    assert not prefix_of(engine)._held


def test_cancelled_job_leaves_what_it_computed_to_others():
    engine = engine_of(prefill_tokens=32)
    engine.add_sample(job("goes", tokens(100), **OPTIONS))
    engine.step()
    engine.step()
    engine.cancel_sample("goes")
    sample(engine, job("j", tokens(100), **OPTIONS))
    assert counts(engine) == (100, 64)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_nothing_of_weights_that_diverged_is_kept(steps):
    engine = engine_of(samplers=("bad", "good"), prefill_tokens=32)
    good = job("good", tokens(100), "good", **OPTIONS)
    expected = sample(engine, good)["good"]
    engine.add_sample(job("bad", tokens(100, seed=1), "bad", **{**OPTIONS, "max_tokens": 20}))
    for _ in range(steps):
        engine.step()
    healthy = engine._pool.sampler("bad").flat.clone()
    diverge(engine, "bad")
    done = finish(engine)
    assert isinstance(done["bad"].error, EngineError)
    for block in prefix_of(engine)._copies:
        for pair in block.copy.values():
            assert all(bool(tensor.isfinite().all()) for tensor in pair)
    diverge(engine, "bad", healthy)
    again = job("bad", tokens(100, seed=1), "bad", **OPTIONS)
    assert all(np.isfinite(sample(engine, again)["bad"].sequences[0].logprobs_np))
    same(sample(engine, good)["good"], expected)


def test_job_that_diverges_in_its_first_chunk_fails_before_the_others():
    engine = engine_of(samplers=("bad",), prefill_tokens=16)
    diverge(engine, "bad")
    engine.add_sample(job("bad", tokens(100), "bad", **OPTIONS))
    (failed,) = engine.step()
    assert "diverged" in str(failed.error)
    assert counts(engine) == (16, 0)


@pytest.mark.parametrize("failing", ["hidden", "logits"])
def test_failed_computation_leaves_nothing_half_done_to_others(monkeypatch, failing):
    one = job("j", tokens(100), **OPTIONS)
    expected = sample(engine_of(), one)["j"]
    engine = engine_of(prefill_tokens=32)
    engine.add_sample(one)
    engine.step()
    with monkeypatch.context() as patch:
        target = engine._runner if failing == "hidden" else Head
        patch.setattr(target, failing, explode)
        assert "out of memory" in str(finish(engine)["j"].error)
    same(sample(engine, one)["j"], expected)
    assert engine._generator._scheduler.free_tokens == 65_536


def test_prompts_whose_computation_fails_together_are_computed_alone(monkeypatch):
    jobs = [job(f"j{i}", tokens(n, seed=i), **OPTIONS) for i, n in enumerate((10, 15, 40))]
    expected = sample(engine_of(), *jobs)
    engine = engine_of()
    hidden = engine._runner.hidden

    def too_large(ids, *rest, **options):
        if len(ids) > 20:
            raise RuntimeError("out of memory")
        return hidden(ids, *rest, **options)

    monkeypatch.setattr(engine._runner, "hidden", too_large)
    for one in jobs:
        engine.add_sample(one)
    done = finish(engine)
    assert "out of memory" in str(done["j2"].error)
    for name in ("j0", "j1"):
        same(done[name].response, expected[name])


def test_question_that_cannot_be_answered_fails_its_job_alone(monkeypatch):
    engine = engine_of()
    plain = job("plain", tokens(20), **OPTIONS)
    expected = sample(engine, plain)["plain"]
    monkeypatch.setattr(engine._runner.head, "topk_logprobs", explode)
    engine.add_sample(job("asks", tokens(30), topk_prompt_logprobs=3, **OPTIONS))
    engine.add_sample(plain)
    done = finish(engine)
    assert "out of memory" in str(done["asks"].error)
    same(done["plain"].response, expected)


def test_prompt_that_cannot_be_reused_is_computed(monkeypatch):
    engine = engine_of()
    prompt = tokens(40)
    expected = sample(engine, job("j", prompt, **OPTIONS))["j"]
    engine.add_sample(job("other", tokens(30, seed=1), **OPTIONS))
    engine.add_sample(job("j", prompt, **OPTIONS))
    with monkeypatch.context() as patch:
        patch.setattr("tinkex.engine.attention.kv_cache.Slab.copy_in", explode)
        done = finish(engine)
    same(done["j"].response, expected)
    assert done["j"].response.prompt_cache_hit_tokens == 0
    assert done["other"].error is None
    same(sample(engine, job("j", prompt, **OPTIONS))["j"], expected)


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_requests_has_the_bits_of_each_alone_and_leaves_nothing(seed):
    """Little memory, small chunks, cancelled and diverging jobs, owners and adapters at random."""
    rng = np.random.default_rng(seed)
    samplers = ("a", "b", "bad")
    stems = [tokens(40, seed=i) for i in range(2)]

    def request(number):
        stem = stems[number % 2][: int(rng.integers(0, 41))]
        asked = {"prompt_logprobs": True, "prompt_logprobs_last_n": 5} if number % 5 == 0 else {}
        return job(
            f"j{number}",
            stem + tokens(int(rng.integers(1, 30)), seed=number % 3),
            (*samplers, None)[number % 4],
            num_samples=int(rng.integers(1, 4)),
            owner=str(number % 2),
            seed=number,
            stop=[],
            max_tokens=int(rng.integers(1, 8)),
            **asked,
        )

    jobs = [request(number) for number in range(24)]
    engine = engine_of(
        samplers=samplers,
        prefill_tokens=32,
        max_running=4,
        kv_cache_tokens=512,
        prefix_cache_tokens=200,
    )
    plain = engine_of(samplers=samplers, prefix_cache_tokens=0)
    for made in (engine, plain):
        with torch.no_grad():
            made._pool.sampler("bad").flat.fill_(torch.nan)
    generator, left, done = engine._generator, list(jobs), {}
    while left or engine.has_sampling_work():
        for one in [left.pop() for _ in range(int(rng.integers(0, 4))) if left]:
            engine.add_sample(one)
        if rng.random() < 0.1:
            engine.cancel_sample(f"j{rng.integers(24)}")
        done |= {f.job_id: f for f in engine.step()}
        assert prefix_of(engine).copied_tokens <= min(200, generator._scheduler.free_tokens)
        assert kept_bytes(engine) == prefix_of(engine).copied_tokens * 512
    assert len(done) > 12
    for one in jobs:
        if one.job_id in done and one.sampler_id == "bad":
            assert isinstance(done[one.job_id].error, EngineError)
        elif one.job_id in done:
            same(done[one.job_id].response, sample(plain, one)[one.job_id])
    assert generator.reused_tokens > 0
    assert generator._scheduler.free_tokens == 512
    assert generator._cache.open_rows == 0
    assert not prefix_of(engine)._held


# --- chunks and turns ---------------------------------------------------------------------------


def test_running_stream_gets_a_token_between_the_chunks_of_a_long_prompt():
    engine = engine_of(prefill_tokens=16)
    arrived = []
    engine.add_sample(
        job(
            "stream",
            tokens(5),
            **{**OPTIONS, "max_tokens": 50},
            on_token=arrived.append,
        )
    )
    engine.step()
    engine.add_sample(job("long", tokens(100), **OPTIONS))
    while engine._generator.prefilled_tokens < 105:
        before = engine._generator.prefilled_tokens, len(arrived)
        engine.step()
        engine.step()
        assert engine._generator.prefilled_tokens - before[0] <= 16
        assert len(arrived) == before[1] + 1


def test_chunks_of_several_prompts_share_a_forward(monkeypatch):
    engine = engine_of()
    sizes = []
    hidden = engine._runner.hidden
    monkeypatch.setattr(
        engine._runner,
        "hidden",
        lambda ids, *rest, **options: sizes.append(len(ids)) or hidden(ids, *rest, **options),
    )
    for i in range(4):
        engine.add_sample(job(f"j{i}", tokens(30, seed=i), owner=str(i), **OPTIONS))
    engine.step()
    assert sizes == [60]  # two prompts of thirty; the rest of a third waits for the next step


def test_short_prompt_of_another_owner_overtakes_a_long_one():
    engine = engine_of(prefill_tokens=16, max_running=2)
    engine.add_sample(job("long", tokens(120), owner="a", **OPTIONS))
    engine.step()
    engine.add_sample(job("short", tokens(10), owner="b", **OPTIONS))
    order = []
    while engine.has_sampling_work():
        order += [f.job_id for f in engine.step()]
    assert order == ["short", "long"]


def test_request_of_another_owner_is_answered_as_if_it_were_alone():
    engine = engine_of(max_running=8)
    for i in range(60):
        engine.add_sample(
            job(f"a{i}", tokens(20, seed=i), owner="a", **{**OPTIONS, "max_tokens": 30})
        )
    for _ in range(6):
        engine.step()
    engine.add_sample(job("b", tokens(20, seed=100), owner="b", **OPTIONS))
    steps = 0
    while not any(ended.job_id == "b" for ended in engine.step()):
        steps += 1
    assert steps <= 2 + OPTIONS["max_tokens"]
    for i in range(60):
        engine.cancel_sample(f"a{i}")
    assert not engine.has_sampling_work()


def test_prompt_of_a_model_with_a_window_attends_within_it():
    """Blocks past the first read no more keys than the window reaches."""
    model = tiny_model("mistral")
    prompt = tokens(70)
    with torch.no_grad():
        exact = model(torch.tensor([prompt])).logits[0, -1].log_softmax(0)
    found = (
        sample(
            engine_of("mistral"),
            job("j", prompt, max_tokens=1, topk_sample_logprobs=20, temperature=0.0),
        )["j"]
        .sequences[0]
        .topk_logprobs_np
    )
    expected = exact.topk(20)
    assert found.token_ids[0].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(found.logprobs[0], expected.values.numpy(), atol=1e-5)
