"""NaN and overflow in one user's requests, run by the server's thread beside others'."""

from __future__ import annotations

import asyncio

import pytest
import torch
from engine_support import datum, job, shake, tiny_engine, tokens

from tinkex._clock import SystemClock
from tinkex.errors import EngineError, InputError
from tinkex.server.models.jobs import EngineJobs
from tinkex.types import AdamParams, LoraConfig

GOOD, BAD = ("a", "d"), ("b", "c")
PARAMS = AdamParams(learning_rate=1e-2)


def engine_of():
    """Adapters with a gradient and an optimiser's state each, and samplers of the same names."""
    engine = tiny_engine()
    for number, name in enumerate("abcd"):
        engine.create_adapter(name, LoraConfig(rank=4, seed=number))
        shake(engine, name, seed=number)
        for seed in range(2):
            engine.forward_backward(name, [datum(9, seed=seed)], "cross_entropy")
            if not seed:
                engine.optim_step(name, PARAMS)
        engine.snapshot_sampler(name, name)
    return engine


def state(engine, name):
    tensors = engine._pool.adapter(name).tensors()
    return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}


def spoil(engine, name):
    with torch.no_grad():
        engine._pool.adapter(name).weights.flat.fill_(float("nan"))


async def at_once(engine, submit):
    """Give the outcomes of what `submit` asks of the engine's jobs before they start."""
    faults = []
    jobs = EngineJobs(engine, name="x", clock=SystemClock(), on_fault=faults.append)
    futures = submit(jobs)
    jobs.start()
    outcomes = await asyncio.gather(*futures.values(), return_exceptions=True)
    await jobs.stop()
    assert faults == []
    return dict(zip(futures, outcomes, strict=True))


def training(data):
    def submit(jobs):
        return {
            name: jobs.train(
                name,
                lambda engine, name=name: engine.begin_forward_backward(
                    name, data[name], "cross_entropy"
                ),
            )
            for name in data
        }

    return submit


@pytest.mark.parametrize("weight", [1e38, float("nan"), float("inf")])
async def test_batch_that_is_not_finite_fails_its_user_and_changes_nothing(weight):
    engine, alone = engine_of(), engine_of()
    data = {name: [datum(6, seed=5), datum(8, seed=6)] for name in "abcd"}
    for name in BAD:
        data[name] = [datum(6, seed=5), datum(4, seed=6, weights=[weight] * 4)]
    before = {name: state(engine, name) for name in BAD}
    found = await at_once(engine, training(data))
    for name in BAD:
        assert isinstance(found[name], InputError), found[name]
        assert found[name].category == "user"
        assert state(engine, name) == before[name]
    for name in GOOD:
        expected = alone.forward_backward(name, data[name], "cross_entropy")
        assert found[name].loss_fn_outputs == expected.loss_fn_outputs
        assert state(engine, name) == state(alone, name)
    for name in "abcd":
        assert engine.optim_step(name, PARAMS) == alone.optim_step(name, PARAMS)
        assert state(engine, name) == state(alone, name)


async def test_adapter_that_diverged_fails_its_user_alone_in_training_and_sampling():
    engine, alone = engine_of(), engine_of()
    for name in BAD:
        spoil(engine, name)
        engine.snapshot_sampler(name, name)
    data = {name: [datum(6, seed=5)] for name in "abcd"}
    before = {name: state(engine, name) for name in BAD}
    asked = {
        name: job(name, tokens(7), name, num_samples=3, seed=n, max_tokens=12)
        for n, name in enumerate("abcd")
    }

    def submit(jobs):
        sampled = {f"sample {name}": jobs.sample(one) for name, one in asked.items()}
        return {**training(data)(jobs), **sampled}

    found = await at_once(engine, submit)
    right = await at_once(alone, lambda jobs: {n: jobs.sample(asked[n]) for n in GOOD})
    for name in BAD:
        for outcome in (found[name], found[f"sample {name}"]):
            assert isinstance(outcome, EngineError)
            assert outcome.category == "server"
            assert "not finite" in str(outcome)
        assert state(engine, name) == before[name]
    for name in GOOD:
        expected = alone.forward_backward(name, data[name], "cross_entropy")
        assert found[name].loss_fn_outputs == expected.loss_fn_outputs
        assert state(engine, name) == state(alone, name)
        for one, other in zip(
            found[f"sample {name}"].sequences, right[name].sequences, strict=True
        ):
            assert one.tokens_np.tobytes() == other.tokens_np.tobytes()
            assert one.logprobs_np.tobytes() == other.logprobs_np.tobytes()
    assert engine._generator._cache.open_rows == 0


async def test_step_that_overflows_fails_its_user_and_leaves_weights_and_optimiser():
    engine, alone = engine_of(), engine_of()
    for name in BAD:
        engine._pool.adapter(name).gradient.fill_(1e30)
    before = {name: state(engine, name) for name in BAD}

    def submit(jobs):
        return {
            name: jobs.call(name, lambda engine, name=name: engine.optim_step(name, PARAMS))
            for name in "abcd"
        }

    found = await at_once(engine, submit)
    for name in BAD:
        assert isinstance(found[name], InputError)
        del before[name]["gradient"]  # it would overflow again
        assert state(engine, name) == before[name]
    for name in GOOD:
        assert found[name] == alone.optim_step(name, PARAMS)
        assert state(engine, name) == state(alone, name)
