"""Samples that give their memory to older ones go on later with the same bits, and all end."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from engine_support import CONTEXT, job, sample, tiny_engine, tiny_model, tokens, trained_engine

OPEN_ENDED = {"stop": [], "temperature": 1.0}
SCARCE = {"kv_cache_tokens": 256, "kv_ahead_tokens": 1}
"""Room for two sequences of the whole context (128), or four that begin."""


def bits(response):
    return [
        (s.stop_reason, s.sequence_id, s.tokens_np.tobytes(), s.logprobs_np.tobytes())
        for s in response.sequences
    ], None if response.prompt_logprobs_np is None else response.prompt_logprobs_np.tobytes()


def four(sampler=None, **options):
    return [
        job(name, tokens(9 + i, seed=i), sampler, owner=name, seed=i, **OPEN_ENDED, **options)
        for i, name in enumerate("abcd")
    ]


def reserved(engine):
    return sum(
        sum(state.reserved.values()) + state.promised + state.prompt_reserved
        for state in engine._generator._jobs.values()
    )


def test_samples_that_name_no_limit_run_side_by_side():
    engine = tiny_engine(model=tiny_model("llama", max_position_embeddings=40_960))
    for i in range(6):
        engine.add_sample(job(str(i), tokens(20), owner=str(i), **OPEN_ENDED))
    for _ in range(10):
        engine.step()
    assert len(engine._generator._scheduler.running) == 6


@pytest.mark.parametrize("family", ["llama", "mistral", "phi", "qwen3_moe", "gpt_oss"])
def test_sample_that_was_preempted_goes_on_with_the_same_bits(family):
    wide = sample(tiny_engine(family), *four(topk_sample_logprobs=3))
    engine = tiny_engine(family, **SCARCE)
    narrow = sample(engine, *four(topk_sample_logprobs=3))
    assert engine.preemptions >= 2
    for name in "abcd":
        assert bits(narrow[name]) == bits(wide[name])
        for one, other in zip(narrow[name].sequences, wide[name].sequences, strict=True):
            np.testing.assert_array_equal(
                one.topk_logprobs_np.token_ids, other.topk_logprobs_np.token_ids
            )
    assert engine._generator._cache.open_rows == 0
    assert engine._generator._scheduler.free_tokens == 256


@pytest.mark.parametrize("prefix_cache_tokens", [0, 32_768])
def test_samples_of_one_job_yield_to_each_other(prefix_cache_tokens):
    request = job("j", tokens(70), "a", num_samples=5, seed=3, prompt_logprobs=True, **OPEN_ENDED)
    wide = sample(trained_engine(), request)["j"]
    scarce = {"kv_cache_tokens": 300, "kv_ahead_tokens": 1}
    engine = trained_engine(prefix_cache_tokens=prefix_cache_tokens, **scarce)
    narrow = sample(engine, request)["j"]
    assert bits(narrow) == bits(wide)
    assert narrow.prompt_cache_hit_tokens == wide.prompt_cache_hit_tokens == 0
    assert [s.sequence_id for s in narrow.sequences] == [f"j:{i}" for i in range(5)]


def test_each_token_is_told_once_though_its_sample_was_preempted():
    told = {name: [] for name in "abcd"}
    engine = tiny_engine(**SCARCE)
    found = sample(engine, *(replace(r, on_token=told[r.job_id].append) for r in four()))
    assert engine.preemptions
    for name, one in found.items():
        assert [t.token for t in told[name]] == one.sequences[0].tokens_np.tolist()


def test_resumed_sample_may_be_preempted_too():
    whole = sample(tiny_engine(), *four())
    cut = [
        replace(r, resume=[whole[r.job_id].sequences[0].tokens_np[:30].tolist()]) for r in four()
    ]
    engine = tiny_engine(**SCARCE)
    found = sample(engine, *cut)
    assert engine.preemptions
    for name in "abcd":
        rest = whole[name].sequences[0].tokens_np[30:]
        np.testing.assert_array_equal(found[name].sequences[0].tokens_np, rest)


def until_preempted(engine):
    for request in four():
        engine.add_sample(request)
    while not engine.preemptions:
        engine.step()
    (state,) = [s for s in engine._generator._jobs.values() if s.preempted]
    return state.job.job_id


def test_preempted_sample_may_be_cancelled():
    engine = tiny_engine(**SCARCE)
    gone = until_preempted(engine)
    engine.cancel_sample(gone)
    found = sample(engine)
    assert set(found) == set("abcd") - {gone}
    assert engine._generator._scheduler.free_tokens == 256


def test_failure_to_compute_a_preempted_sample_again_costs_it_alone(monkeypatch):
    wide = sample(tiny_engine(), *four())
    engine = tiny_engine(**SCARCE)
    victim = until_preempted(engine)

    def fails(*_args):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(engine._generator._replay, "run", fails)
    ends = {}
    while engine.has_sampling_work():
        ends |= {end.job_id: end for end in engine.step()}
    assert ends.pop(victim).error is not None
    for name, end in ends.items():
        if end.error is None:
            assert bits(end.response) == bits(wide[name])
    assert any(end.error is None for end in ends.values())
    assert engine._generator._cache.open_rows == 0


def test_sample_whose_reader_is_slow_yields_to_younger_ones():
    wide = sample(tiny_engine(), *four())
    engine = tiny_engine(**SCARCE)
    for request in four():
        engine.add_sample(request)
    while not engine._generator._jobs["a"].sequences:
        engine.step()
    engine.hold_sample("a", held=True)
    found = {}
    while len(found) < 3:
        for end in engine.step():
            found[end.job_id] = end.response
    engine.hold_sample("a", held=False)
    found |= sample(engine)
    for name in "abcd":
        assert bits(found[name]) == bits(wide[name])


@pytest.mark.parametrize("seed", range(6))
def test_whatever_comes_all_end_with_the_bits_that_they_have_alone(seed):
    anything_comes(seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6, 80))
def test_whatever_comes_all_end_with_the_bits_that_they_have_alone_at_length(seed):
    anything_comes(seed)


def anything_comes(seed):
    """Let jobs come, be cancelled and held at random in an engine of little memory."""
    rng = random.Random(seed)
    family = rng.choice(["llama", "qwen3", "mistral"])
    context = rng.choice([CONTEXT, 2 * CONTEXT])
    scarce = {
        "kv_cache_tokens": rng.choice([256, 512, 640]),
        "kv_ahead_tokens": rng.choice([1, 8, 32]),
        "max_running": rng.choice([4, 8, 16]),
        "prefix_cache_tokens": rng.choice([0, 64, 512]),
    }
    block = rng.choice([16, 64])
    engine, roomy = (
        tiny_engine(
            model=tiny_model(family, max_position_embeddings=context),
            prefill_block_tokens=block,
            **changes,
        )
        for changes in (scarce, {})
    )
    requests = [any_job(rng, str(i)) for i in range(rng.randint(4, 9))]
    wide = sample(roomy, *requests)
    found, cancelled, held = {}, set(), {}
    queue, steps = list(requests), 0
    while queue or engine.has_sampling_work():
        steps += 1
        assert steps < 50_000, "somebody waits for ever"
        if queue and rng.random() < 0.5:
            engine.add_sample(queue.pop(0))
        open_jobs = list(engine._generator._jobs)
        if open_jobs and rng.random() < 0.002:
            cancelled.add(rng.choice(open_jobs))
            for name in cancelled:
                engine.cancel_sample(name)
        if open_jobs and rng.random() < 0.02:
            held[rng.choice(open_jobs)] = steps + rng.randint(1, 50)
        for name, until in held.items():
            engine.hold_sample(name, held=until > steps)
        found |= {end.job_id: end.response for end in engine.step()}
        assert engine._generator._scheduler._reserved == reserved(engine)
    for name in set(wide) - cancelled:
        assert bits(found[name]) == bits(wide[name]), name
    assert engine._generator._cache.open_rows == engine._generator._scheduler._slots == 0


def any_job(rng, name):
    prompt = [rng.randrange(2, 97) for _ in range(rng.randint(1, 60))]
    return job(
        name,
        tokens(len(prompt)) if rng.random() < 0.5 else prompt,
        num_samples=rng.choice([1, 1, 2, 4]),
        owner=rng.choice("abc"),
        seed=int(name),
        temperature=rng.choice([0.0, 1.0]),
        stop=[] if rng.random() < 0.7 else [5],
        prompt_logprobs=rng.random() < 0.3,
        max_tokens=None if rng.random() < 0.7 else rng.randint(1, 60),
    )
