"""A computation that fails once, wherever that is: who can be spared is, nothing is left over."""

from __future__ import annotations

import pytest
import torch
from engine_support import datum, job, sample, tokens, trained_engine

from tinkex.engine.sampling import generation
from tinkex.errors import EngineError
from tinkex.types import AdamParams

PLACES = {
    "the model": lambda engine: (engine._runner, "hidden"),
    "the logits": lambda engine: (engine._runner.head, "logits"),
    "the choice of tokens": lambda _engine: (generation, "choose_tokens"),
    "the scores of a prompt": lambda _engine: (generation, "score_prompt"),
    "a new row": lambda engine: (engine._generator._cache, "allocate"),
    "a copy of a row": lambda engine: (engine._generator._cache, "fork"),
    "a row that grows": lambda engine: (engine._generator._cache, "make_room"),
    "a kept prompt": lambda engine: (engine._generator._prefill.prefix, "_copy_out"),
    "a reused prompt": lambda engine: (engine._generator._prefill, "reuse"),
}


def jobs():
    return [
        job("x", tokens(5), "a", num_samples=3, seed=1, max_tokens=70),
        job("y", tokens(9, seed=1), "b", num_samples=2, seed=2, max_tokens=60, top_k=5),
        job("z", tokens(5), seed=3, max_tokens=20, prompt_logprobs=True),
    ]


def bits(response):
    return [(s.tokens_np.tobytes(), s.logprobs_np.tobytes()) for s in response.sequences]


class FailsOnce:
    def __init__(self, work, at):
        self.work, self.left, self.failed = work, at, False

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            self.failed = True
            raise RuntimeError("not enough memory")
        return self.work(*args, **kwargs)


def run(engine):
    for one in jobs():
        engine.add_sample(one)
    ends = []
    while engine.has_sampling_work():
        ends += engine.step()
    return {end.job_id: end for end in ends}


@pytest.mark.parametrize("place", PLACES)
def test_failure_in_one_place_of_sampling_costs_one_job_at_most(place, monkeypatch):
    engine = trained_engine()
    expected = {name: bits(one) for name, one in sample(engine, *jobs()).items()}
    clean = trained_engine()
    spared = 0
    for at in (1, 2, 3, 7, 40):
        owner, name = PLACES[place](clean)
        work = FailsOnce(getattr(owner, name), at)
        monkeypatch.setattr(owner, name, work)
        ends = run(clean)
        monkeypatch.undo()
        assert set(ends) == set(expected)
        failed = [one.error for one in ends.values() if one.error is not None]
        assert len(failed) <= 1
        for error in failed:
            assert isinstance(error, EngineError)
            assert "not enough memory" in str(error)
        for job_id, end in ends.items():
            if end.error is None:
                assert bits(end.response) == expected[job_id]
        spared += work.failed and not failed
        assert clean._generator._cache.open_rows == 0
        assert clean._generator._scheduler._reserved == 0
        clean._generator._prefill.prefix.shrink(0)
    assert spared or place in {"the scores of a prompt", "a new row", "a reused prompt"}


def test_storage_that_cannot_grow_opens_no_row_and_harms_none(monkeypatch):
    engine = trained_engine()
    expected = {name: bits(one) for name, one in sample(engine, *jobs()).items()}
    whole = torch.Tensor.new_zeros
    for at in (1, 2, 5, 17):
        engine = trained_engine(prefix_cache_tokens=0)
        work = FailsOnce(whole, at)
        monkeypatch.setattr(torch.Tensor, "new_zeros", lambda *a, work=work, **k: work(*a, **k))
        ends = run(engine)
        monkeypatch.undo()
        assert work.failed
        assert sum(end.error is not None for end in ends.values()) <= 1
        for job_id, end in ends.items():
            if end.error is None:
                assert bits(end.response) == expected[job_id]
        assert engine._generator._cache.open_rows == 0


@pytest.mark.parametrize("place", ["lerp", "isfinite"])
def test_step_that_fails_by_itself_keeps_gradient_weights_and_optimiser(place, monkeypatch):
    engine, still = trained_engine(), trained_engine()
    for each in (engine, still):
        for _ in range(2):
            each.forward_backward("a", [datum(5)], "cross_entropy")
            each.optim_step("a", AdamParams())
        each.forward_backward("a", [datum(6)], "cross_entropy")

    def fails(*_args, **_kwargs):
        raise RuntimeError("not enough memory")

    before = {k: v.clone() for k, v in engine._pool.adapter("a").tensors().items()}
    owner = torch if place == "lerp" else torch.Tensor
    monkeypatch.setattr(owner, place, fails)
    with pytest.raises(EngineError, match="optim_step failed: not enough memory"):
        engine.optim_step("a", AdamParams())
    monkeypatch.undo()
    after = engine._pool.adapter("a").tensors()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    for each in (engine, still):
        each.optim_step("a", AdamParams())
    assert torch.equal(
        engine._pool.adapter("a").weights.flat, still._pool.adapter("a").weights.flat
    )
