"""Samples that go on after given tokens: the bits of the sample that was never cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine_support import job, sample, tiny_engine, tokens, trained_engine

from tinkex.engine.engine import Engine, load_base_model
from tinkex.engine.sampling.uniform import UniformStream
from tinkex.errors import EngineError, InputError

LONG = {"max_tokens": 90, "stop": [], "seed": 11, "temperature": 1.0}
PROMPT = tokens(21)


def parts(response):
    return [(s.tokens_np.tolist(), s.logprobs_np.tolist()) for s in response.sequences]


def resumed(engine, whole, request, cut, job_id="resumed"):
    """Cut each sample at its own place; give what came after."""
    given = [tokens[:at] for (tokens, _), at in zip(whole, cut, strict=True)]
    return parts(sample(engine, replace(request, job_id=job_id, resume=given))[job_id])


def rest(whole, cut):
    return [(t[at:], p[at:]) for (t, p), at in zip(whole, cut, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 5, "temperature": 1.7},
        {"top_p": 0.8},
        {"temperature": 0.0},
    ],
    ids=["plain", "top-k", "top-p", "greedy"],
)
def test_every_cut_goes_on_with_the_same_bits(options):
    request = job("whole", PROMPT, "a", **(LONG | options))
    whole = parts(sample(trained_engine(), request)["whole"])
    found = sample(
        trained_engine(),
        *(
            replace(request, job_id=str(cut), resume=[whole[0][0][:cut]])
            for cut in range(len(whole[0][0]) + 1)
        ),
    )
    for cut in range(len(whole[0][0]) + 1):
        assert parts(found[str(cut)]) == rest(whole, [cut]), cut


@pytest.mark.parametrize("family", ["llama", "mistral", "phi", "qwen3_moe", "gpt_oss"])
def test_every_family_goes_on_with_the_same_bits(family):
    request = job("whole", PROMPT, num_samples=2, **LONG)
    whole = parts(sample(tiny_engine(family), request)["whole"])
    other = tiny_engine(family)
    # Across the borders of the cache's size classes, which are 64 and 128 tokens.
    for cut in ([43, 44], [2, 70]):
        assert resumed(other, whole, request, cut, str(cut)) == rest(whole, cut), cut


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_dtype": "int8"},
        {"dense_path": False},
        {"prefill_tokens": 16, "prefill_block_tokens": 16},
        {"prefix_cache_tokens": 0},
    ],
    ids=str,
)
def test_settings_that_change_bits_change_them_alike(settings):
    request = job("whole", PROMPT, "b", num_samples=2, **LONG)
    whole = parts(sample(trained_engine(**settings), request)["whole"])
    other = trained_engine(**settings)
    assert resumed(other, whole, request, [60, 7]) == rest(whole, [60, 7])


def test_company_does_not_change_what_goes_on():
    first = job("one", PROMPT, "a", num_samples=3, **LONG)
    second = job("two", tokens(40, seed=3), "b", max_tokens=50, stop=[], seed=5)
    third = job("three", tokens(70, seed=4), **(LONG | {"max_tokens": 30}))
    alone = {
        one.job_id: parts(sample(trained_engine(), one)[one.job_id])
        for one in (first, second, third)
    }
    cut = [5, 0, 77]
    given = [tokens[:at] for (tokens, _), at in zip(alone["one"], cut, strict=True)]
    found = sample(
        trained_engine(max_running=4, prefill_tokens=64),
        third,
        replace(first, resume=given),
        replace(second, resume=[alone["two"][0][0][:49]]),
    )
    assert parts(found["one"]) == rest(alone["one"], cut)
    assert parts(found["two"]) == rest(alone["two"], [49])
    assert parts(found["three"]) == alone["three"]


def test_sample_that_had_ended_gives_nothing_more_and_why_it_ended():
    request = job("whole", PROMPT, num_samples=2, **(LONG | {"max_tokens": 8}))
    whole = parts(sample(tiny_engine(), request)["whole"])
    at = whole[0][0].index(whole[0][0][5])
    stopping = replace(
        request,
        job_id="stopped",
        sampling_params=request.sampling_params.model_copy(update={"stop": [whole[0][0][5]]}),
        resume=[whole[0][0][: at + 1], whole[1][0][:8]],
    )
    found = sample(tiny_engine(), stopping)["stopped"]
    assert [(s.tokens_np.tolist(), s.stop_reason) for s in found.sequences] == [
        ([], "stop"),
        ([], "length"),
    ]


def test_only_new_tokens_are_told():
    request = job("whole", PROMPT, topk_sample_logprobs=2, **(LONG | {"max_tokens": 9}))
    whole = sample(tiny_engine(), request)["whole"].sequences[0]
    told = []
    again = replace(request, resume=[whole.tokens_np[:6].tolist()], on_token=told.append)
    found = sample(tiny_engine(), again)["whole"].sequences[0]
    assert [one.token for one in told] == found.tokens_np.tolist() == whole.tokens_np[6:].tolist()
    assert told[-1].stop_reason == "length"
    assert np.array_equal(found.topk_logprobs_np.logprobs, whole.topk_logprobs_np.logprobs[6:])


def test_long_replay_holds_up_no_stream_for_longer_than_a_prompt_would():
    engine = tiny_engine(prefill_tokens=8, prefill_block_tokens=8)
    whole = parts(sample(tiny_engine(), job("w", PROMPT, **LONG))["w"])
    beats = []
    engine.add_sample(
        job("stream", PROMPT, max_tokens=60, stop=[], on_token=lambda _: beats.append(steps))
    )
    steps = 0
    while not beats:
        engine.step()
    engine.add_sample(replace(job("r", PROMPT, **LONG), resume=[whole[0][0][:80]]))
    while engine.has_sampling_work():
        steps += 1
        engine.step()
    assert max(np.diff(beats)) <= 2


def test_replay_that_fails_fails_its_own_sample_and_leaves_nothing(monkeypatch):
    engine = tiny_engine()
    feed = engine._generator._replay._feed
    monkeypatch.setattr(
        engine._generator._replay,
        "_feed",
        lambda sequence, count: (
            feed(sequence, count)
            if sequence.state.job.job_id == "good"
            else (_ for _ in ()).throw(RuntimeError("no memory"))
        ),
    )
    for name in ("bad", "good"):
        engine.add_sample(replace(job(name, PROMPT, **LONG), resume=[[3, 4, 5]]))
    ends = {}
    while engine.has_sampling_work():
        ends |= {end.job_id: end for end in engine.step()}
    assert isinstance(ends["bad"].error, EngineError)
    assert len(ends["good"].response.sequences[0].tokens) == 87
    assert engine._generator._cache.open_rows == 0


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ([[1], [2]], "for 1"),
        ([[0] * 6], "max_tokens is 5"),
        ([[97]], "outside the vocabulary"),
        ([[-1]], "outside the vocabulary"),
    ],
)
def test_tokens_that_cannot_be_gone_on_from_are_refused(resume, message):
    with pytest.raises(InputError, match=message):
        tiny_engine().add_sample(replace(job("j", PROMPT, max_tokens=5), resume=resume))


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 200])
def test_random_numbers_go_on_where_they_were(start):
    whole, late = UniformStream(7, 3), UniformStream(7, 3, start)
    assert [whole.draw() for _ in range(300)][start:] == [late.draw() for _ in range(300 - start)]


def test_shipped_model_goes_on_with_the_same_bits():
    engine = Engine(load_base_model("tinkex/sprout"))
    request = job("whole", tokens(30), num_samples=2, **(LONG | {"max_tokens": 40}))
    whole = parts(sample(engine, request)["whole"])
    for cut in ([10, 39], [33, 34]):
        assert resumed(engine, whole, request, cut, str(cut)) == rest(whole, cut)


def test_sample_that_is_said_to_have_ended_is_left_alone():
    request = job("whole", PROMPT, num_samples=2, **LONG)
    whole = parts(sample(tiny_engine(), request)["whole"])
    again = replace(request, resume=[[], whole[1][0][:7]], ended=[0])
    found = parts(sample(tiny_engine(), again)["whole"])
    assert found == [([], []), (whole[1][0][7:], whole[1][1][7:])]


def test_sample_that_is_held_waits_and_goes_on_with_the_same_bits():
    request = job("whole", PROMPT, **LONG)
    whole = parts(sample(tiny_engine(), request)["whole"])
    engine = tiny_engine()
    seen = []
    engine.add_sample(replace(request, on_token=seen.append))
    while len(seen) < 5:
        engine.step()
    engine.hold_sample("whole", held=True)
    other = sample_beside(engine, job("other", PROMPT, **LONG))
    assert engine.step() == []
    assert not engine.served
    assert len(seen) == 5
    engine.hold_sample("whole", held=False)
    assert parts(sample(engine)["whole"]) == whole
    assert parts(other) == whole


def sample_beside(engine, request):
    """Run one job to its end while others may wait."""
    engine.add_sample(request)
    while True:
        for finished in engine.step():
            return finished.response
