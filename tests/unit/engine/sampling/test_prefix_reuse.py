"""Prompts that share a beginning: computed once, with the bits of a prompt computed alone."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from engine_support import job, sample, shake, tokens, trained_engine
from prompt_support import BLOCK, OPTIONS, counts, engine_of, finish, kept_bytes, prefix_of, same

from tinkex.types import Datum, ModelInput, TensorData

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
