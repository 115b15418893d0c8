"""Prompts that share a beginning: computed once, with the bits of a prompt computed alone."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from engine_support import (
    diverge,
    job,
    sample,
    shake,
    tiny_engine,
    tiny_model,
    tokens,
    trained_engine,
)

from tinkex.engine.head import Head
from tinkex.errors import EngineError
from tinkex.types import Datum, LoraConfig, ModelInput, TensorData

BLOCK = 16
OPTIONS = {"max_tokens": 6, "stop": [], "seed": 5}


def engine_of(family="qwen3", *, samplers=(), **settings):
    settings = {"prefill_block_tokens": BLOCK, "prefill_tokens": 64, **settings}
    engine = tiny_engine(family, **settings)
    for number, name in enumerate(samplers):
        engine.create_adapter(name, LoraConfig(rank=2 + number, seed=number))
        shake(engine, name, seed=number)
        engine.snapshot_sampler(name, name)
    return engine


def counts(engine):
    generator = engine._generator
    return generator.prefilled_tokens, generator.reused_tokens


def finish(engine):
    done = {}
    while engine.has_sampling_work():
        done |= {f.job_id: f for f in engine.step()}
    return done


def same(a, b):
    assert a.sequences == b.sequences
    asked = ("prompt_logprobs_np", "topk_prompt_logprobs", "target_prompt_logprobs")
    for name in (*asked, "prompt_alt_tokens"):
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=True)
        else:
            assert one == other
    for one, other in zip(a.sequences, b.sequences, strict=True):
        assert np.array_equal(one.tokens_np, other.tokens_np)
        assert np.array_equal(one.logprobs_np, other.logprobs_np)


# --- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma3_text", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("shared", [15, 16, 17, 31, 32, 48, 63])
def test_hit_has_the_bits_of_a_miss(family, shared):
    first = tokens(shared)
    second = first + tokens(19, seed=1)
    alone = sample(engine_of(family), job("second", second, **OPTIONS))["second"]
    engine = engine_of(family)
    sample(engine, job("first", first, **OPTIONS))
    before = counts(engine)
    found = sample(engine, job("second", second, **OPTIONS))["second"]
    same(found, alone)
    reused = shared // BLOCK * BLOCK
    assert counts(engine) == (before[0] + len(second) - reused, reused)
    assert (found.prompt_cache_hit_tokens, alone.prompt_cache_hit_tokens) == (reused, 0)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 70])
def test_whole_prompt_is_reused_by_an_equal_one(length):
    prompt = tokens(length)
    engine = engine_of()
    expected = sample(engine, job("a", prompt, num_samples=2, **OPTIONS))["a"]
    found = sample(engine, job("a", prompt, num_samples=2, **OPTIONS))["a"]
    same(found, expected)
    assert counts(engine) == (length, length)


@pytest.mark.parametrize("family", ["qwen3", "mistral", "qwen3_moe", "gpt_oss"])
def test_chunk_size_changes_no_bit(family):
    prompt = tokens(100)
    whole = sample(engine_of(family, prefill_tokens=128), job("j", prompt, **OPTIONS))["j"]
    for budget in (16, 48, 64):
        same(
            sample(engine_of(family, prefill_tokens=budget), job("j", prompt, **OPTIONS))["j"],
            whole,
        )


def test_many_prompts_adapters_and_samples_together_have_the_bits_of_each_alone():
    samplers = ("a", "b", "c")
    stem = tokens(40)
    jobs = [
        job(
            f"j{i}",
            stem[: 7 * (i % 6)] + tokens(3 + 11 * (i % 5), seed=i),
            (*samplers, None)[i % 4],
            num_samples=1 + i % 3,
            **{**OPTIONS, "seed": i},
        )
        for i in range(16)
    ]
    expected = {
        one.job_id: sample(engine_of(samplers=samplers, prefix_cache_tokens=0), one)[one.job_id]
        for one in jobs
    }
    engine = engine_of(samplers=samplers, max_running=5)
    for turn in range(2):
        found = sample(engine, *jobs[:: -1 if turn else 1])
        for name, response in expected.items():
            same(found[name], response)
    assert counts(engine)[1] > sum(one.prompt.length for one in jobs)


def test_decoded_tokens_are_computed_again_as_a_prompt():
    """Their keys and values have other bits than a prompt's: a second turn must not take them."""
    engine = engine_of()
    first = tokens(32)
    turn = sample(engine, job("first", first, max_tokens=30, stop=[], seed=1))["first"]
    second = first + turn.sequences[0].tokens_np.tolist() + tokens(9, seed=2)
    before = counts(engine)
    found = sample(engine, job("second", second, **OPTIONS))["second"]
    assert counts(engine) == (before[0] + 30 + 9, 32)
    same(found, sample(engine_of(), job("second", second, **OPTIONS))["second"])


def test_logprobs_after_a_hit_equal_the_training_forward():
    engine = trained_engine(prefill_block_tokens=BLOCK)
    prompt = tokens(60)
    sample(engine, job("first", prompt[:50], "a", **OPTIONS))
    sampled = sample(engine, job("j", prompt, "a", **OPTIONS))["j"].sequences[0]
    ids = prompt + sampled.tokens_np.tolist()
    trained = engine.forward_backward(
        "a",
        [Datum(ModelInput.from_ints(ids[:-1]), {"target_tokens": ids[1:]})],
        "cross_entropy",
        forward_only=True,
    )
    expected = trained.loss_fn_outputs[0]["logprobs"].to_numpy()[len(prompt) - 1 :]
    np.testing.assert_allclose(sampled.logprobs_np, expected, atol=1e-5)
    assert counts(engine)[1] == 48


# --- what is asked about a prompt ---------------------------------------------------------------

ASKED = {
    "prompt_logprobs": {"prompt_logprobs": True},
    "topk": {"topk_prompt_logprobs": 3},
    "targets": {"target_prompt_logprobs": TensorData(np.arange(69 * 2).reshape(69, 2) % 90)},
    "alternatives": {"prompt_alt_tokens_k": 2},
}


@pytest.mark.parametrize("asked", ASKED)
def test_questions_about_every_position_are_computed_in_full(asked):
    prompt = tokens(70)
    expected = sample(engine_of(), job("j", prompt, **ASKED[asked], **OPTIONS))["j"]
    engine = engine_of()
    sample(engine, job("warm", prompt, **OPTIONS))
    found = sample(engine, job("j", prompt, **ASKED[asked], **OPTIONS))["j"]
    same(found, expected)
    assert counts(engine) == (140, 0)
    sample(engine, job("again", prompt, **OPTIONS))
    assert counts(engine) == (140, 70)


@pytest.mark.parametrize(
    ("last", "reused"), [(0, 70), (1, 64), (6, 48), (7, 48), (38, 16), (69, 0)]
)
def test_questions_about_the_last_positions_reuse_what_lies_before(last, reused):
    prompt = tokens(70)
    asked = {"prompt_logprobs": True, "topk_prompt_logprobs": 2, "prompt_logprobs_last_n": last}
    expected = sample(engine_of(), job("j", prompt, **asked, **OPTIONS))["j"]
    engine = engine_of()
    sample(engine, job("warm", prompt, **OPTIONS))
    found = sample(engine, job("j", prompt, **asked, **OPTIONS))["j"]
    same(found, expected)
    assert np.array_equal(found.prompt_logprobs_np, expected.prompt_logprobs_np, equal_nan=True)
    assert counts(engine)[1] == reused


# --- how much is computed -----------------------------------------------------------------------


def test_requests_of_one_prompt_in_the_same_moment_compute_it_once():
    engine = engine_of()
    prompt = tokens(100)
    jobs = [job(f"j{i}", prompt, **{**OPTIONS, "seed": i}) for i in range(12)]
    found = sample(engine, *jobs)
    assert counts(engine) == (100, 1100)
    for one in jobs:
        same(found[one.job_id], sample(engine_of(), one)[one.job_id])


def test_requests_that_find_no_memory_at_first_still_share_their_prompt():
    engine = engine_of(kv_cache_tokens=256, max_running=8)
    jobs = [job(f"j{i}", tokens(100), **{**OPTIONS, "seed": i}) for i in range(9)]
    sample(engine, *jobs)
    assert counts(engine) == (100, 800)


def test_samples_of_one_request_compute_their_prompt_once():
    engine = engine_of()
    sample(engine, job("j", tokens(100), num_samples=9, **OPTIONS))
    assert counts(engine) == (100, 0)


def test_cache_of_no_tokens_keeps_and_shares_nothing():
    engine = engine_of(prefix_cache_tokens=0)
    jobs = [job(f"j{i}", tokens(40), **OPTIONS) for i in range(3)]
    sample(engine, *jobs)
    assert counts(engine) == (120, 0)


def test_owners_and_weights_share_nothing():
    engine = engine_of(samplers=("a", "b"))
    prompt = tokens(40)
    for i, (sampler, owner) in enumerate(
        ((None, "x"), (None, "y"), ("a", "x"), ("b", "x"), ("a", "y"))
    ):
        sample(engine, job(f"j{i}", prompt, sampler, owner=owner, **OPTIONS))
    assert counts(engine) == (200, 0)
    sample(engine, job("j", prompt, "a", owner="y", **OPTIONS))
    assert counts(engine) == (200, 40)


# --- memory -------------------------------------------------------------------------------------


def prefix_of(engine):
    return engine._generator._prefill.prefix


def kept_bytes(engine):
    return sum(
        tensor.numel() * tensor.element_size()
        for block in prefix_of(engine)._copies
        for pair in block.copy.values()
        for tensor in pair
    )


def test_copies_are_bounded_and_the_oldest_go_first():
    engine = engine_of(prefix_cache_tokens=100)
    token_bytes = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, dim, bytes
    prompts = [tokens(40, seed=i) for i in range(4)]
    for i, prompt in enumerate(prompts):
        sample(engine, job(f"j{i}", prompt, **OPTIONS))
        kept = prefix_of(engine).copied_tokens
        assert kept <= 100
        assert kept_bytes(engine) == kept * token_bytes
    assert counts(engine)[1] == 0
    sample(engine, job("newest", prompts[3], **OPTIONS))
    assert counts(engine)[1] == 40
    sample(engine, job("oldest", prompts[0], **OPTIONS))
    assert counts(engine)[1] == 40


def test_prompt_in_use_outlives_newer_ones():
    engine = engine_of(prefix_cache_tokens=100)
    system = tokens(32)
    for i in range(6):
        sample(engine, job(f"j{i}", system + tokens(20, seed=i), **OPTIONS))
        sample(engine, job(f"k{i}", tokens(20, seed=100 + i), **OPTIONS))
    assert counts(engine)[1] == 5 * 32


def test_prompt_longer_than_the_cache_keeps_its_beginning():
    engine = engine_of(prefix_cache_tokens=50)
    sample(engine, job("j", tokens(100), **OPTIONS))
    assert prefix_of(engine).copied_tokens == 48
    sample(engine, job("k", tokens(100), **OPTIONS))
    assert counts(engine) == (152, 48)


def test_running_sequences_take_the_room_of_what_is_kept():
    engine = engine_of(kv_cache_tokens=256, prefix_cache_tokens=256)
    for i in range(3):
        sample(engine, job(f"j{i}", tokens(60, seed=i), **{**OPTIONS, "max_tokens": 2}))
    assert prefix_of(engine).copied_tokens == 180
    engine.add_sample(job("large", tokens(90, seed=9), **{**OPTIONS, "max_tokens": 30}))
    engine.step()
    assert engine._generator._scheduler.free_tokens == 128
    assert prefix_of(engine).copied_tokens <= 128
    finish(engine)


def test_nothing_is_kept_twice():
    engine = engine_of()
    for _ in range(3):
        sample(engine, *[job(f"j{i}", tokens(40), **OPTIONS) for i in range(4)])
        assert prefix_of(engine).copied_tokens == 40
    assert not prefix_of(engine)._held
    assert engine._generator._cache.open_rows == 0


@pytest.mark.parametrize("num_samples", [1, 3])
def test_prompts_of_removed_weights_are_dropped(num_samples):
    engine = engine_of(samplers=("a",))
    sample(engine, job("j", tokens(40), "a", num_samples=num_samples, **OPTIONS))
    sample(engine, job("base", tokens(20), **OPTIONS))
    gc.disable()  # nothing of ours may wait for the collector
    try:
        engine.remove_sampler("a")
        assert prefix_of(engine).copied_tokens == 20
    finally:
        gc.enable()


def test_new_weights_under_an_old_name_find_nothing_of_the_old():
    engine = engine_of(samplers=("a",))
    one = job("j", tokens(40), "a", **OPTIONS)
    before = sample(engine, one)["j"]
    shake(engine, "a", seed=7, scale=0.5)
    engine.snapshot_sampler("a", "a")
    after = sample(engine, one)["j"]
    assert after != before
    assert counts(engine) == (80, 0)
    assert prefix_of(engine).copied_tokens == 40


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
        patch.setattr(target, failing, _explode)
        assert "out of memory" in str(finish(engine)["j"].error)
    same(sample(engine, one)["j"], expected)
    assert engine._generator._scheduler.free_tokens == 65_536


def _explode(*args, **kwargs):
    raise RuntimeError("out of memory")


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
    monkeypatch.setattr(engine._runner.head, "topk_logprobs", _explode)
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
        patch.setattr("tinkex.engine.kv_cache.Slab.copy_in", _explode)
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
            on_token=lambda *t: arrived.append(t),
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
