"""What happens where memory really runs out; run in a process of its own (`RLIMIT_AS`).

Each scenario computes what is expected with all the memory there is, then the same with little, and
gives what it found as plain values.
"""

from __future__ import annotations

import asyncio
import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from engine_support import datum, job, shake, tiny_engine, tiny_model

from tinkex._clock import SystemClock
from tinkex.errors import EngineError
from tinkex.server.models.jobs import EngineJobs
from tinkex.types import AdamParams, LoraConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinkex.engine.engine import Engine

NAMES = ("a", "b", "c", "d")
PARAMS = AdamParams(learning_rate=1e-2)
WORDS = 50_000


@contextmanager
def room(mebibytes: int) -> Iterator[None]:
    """Let this process have so much more address space, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + mebibytes * 2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def trainer() -> Engine:
    """Make an engine with four adapters that have a gradient and an optimiser's state each."""
    torch.set_num_threads(1)
    model = tiny_model(intermediate_size=512)
    engine = tiny_engine(model=model, microbatch_tokens=10**6)
    for number, name in enumerate(NAMES):
        engine.create_adapter(name, LoraConfig(rank=4, seed=number))
        shake(engine, name, seed=number)
        for seed in range(2):
            engine.forward_backward(name, [datum(9, seed=seed)], "cross_entropy")
            if not seed:
                engine.optim_step(name, PARAMS)
    return engine


def state(engine: Engine, name: str) -> dict[str, bytes]:
    """Give all bits of an adapter."""
    tensors = engine._pool.adapter(name).tensors()
    return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}


def batches(sizes: dict[str, int]) -> dict[str, list[Any]]:
    """Make data of so many sequences of 100 tokens for each run."""
    return {n: [datum(100, seed=i) for i in range(size)] for n, size in sizes.items()}


def joint_training(sizes: dict[str, int], mebibytes: int, through_jobs: bool) -> dict[str, Any]:
    """Train all together in little memory; give for each run its error, or whether it is right."""
    data = batches(sizes)
    expected, engine = trainer(), trainer()
    before = {name: state(engine, name) for name in data}
    run = through_engine_jobs if through_jobs else through_engine
    errors = run(engine, data, mebibytes)
    found: dict[str, Any] = {}
    for name, error in errors.items():
        untouched = state(engine, name) == before[name]
        for each in (expected, engine):
            if error is None:
                if each is expected:
                    each.forward_backward(name, data[name], "cross_entropy")
            else:  # whom it failed goes on as if it had not been
                each.forward_backward(name, data[name][:1], "cross_entropy")
            each.optim_step(name, PARAMS)
        right = state(engine, name) == state(expected, name)
        found[name] = (error, untouched, right)
    return found


def through_engine(engine: Engine, data: dict[str, Any], mebibytes: int) -> dict[str, str | None]:
    """Run the tasks together."""
    tasks = {n: engine.begin_forward_backward(n, d, "cross_entropy") for n, d in data.items()}
    with room(mebibytes):
        engine.run_together(list(tasks.values()))
    errors: dict[str, str | None] = {}
    for name, task in tasks.items():
        try:
            task.result()
            errors[name] = None
        except EngineError as error:
            errors[name] = f"{error.category}: {error}"
    return errors


def through_engine_jobs(
    engine: Engine, data: dict[str, Any], mebibytes: int
) -> dict[str, str | None]:
    """Have the server's thread run them, each in a lane of its own."""

    async def run() -> dict[str, str | None]:
        faults: list[BaseException] = []
        jobs = EngineJobs(engine, name="x", clock=SystemClock(), on_fault=faults.append)
        futures = {
            name: jobs.train(
                name,
                lambda engine, name=name: engine.begin_forward_backward(
                    name, data[name], "cross_entropy"
                ),
            )
            for name in data
        }
        jobs.start()
        with room(mebibytes):
            outcomes = await asyncio.gather(*futures.values(), return_exceptions=True)
        await jobs.stop()
        assert faults == []
        assert jobs.failure is None
        return {
            name: f"{one.category}: {one}" if isinstance(one, EngineError) else None
            for name, one in zip(futures, outcomes, strict=True)
        }

    return asyncio.run(run())


def sampler() -> Engine:
    """Make an engine with many words, so that a batch's logits are large, and two samplers."""
    torch.set_num_threads(1)
    model = tiny_model(vocab_size=WORDS)
    engine = tiny_engine(model=model, max_running=2048, kv_cache_tokens=10**7)
    for number, name in enumerate(NAMES[:2]):
        engine.create_adapter(name, LoraConfig(rank=4, seed=number))
        shake(engine, name, seed=number)
        engine.snapshot_sampler(name, name)
    return engine


def sampling_jobs(samples: dict[str, int]) -> list[Any]:
    """Make a job of so many samples each, on the base model and two adapters in turns."""
    return [
        job(
            name,
            [5, 6, 7 + number],
            (None, "a", "b")[number % 3],
            num_samples=count,
            seed=number,
            max_tokens=4,
            top_k=20,
        )
        for number, (name, count) in enumerate(samples.items())
    ]


def joint_sampling(samples: dict[str, int], mebibytes: int, through_jobs: bool) -> dict[str, Any]:
    """Sample all together in little memory; give for each job its error, or whether it is right."""
    expected, engine = sampler(), sampler()
    run = sample_through_jobs if through_jobs else sample_together
    found = run(engine, samples, mebibytes)
    fine = {name: count for name, count in samples.items() if not isinstance(found[name], str)}
    right = {}
    for one in sampling_jobs(samples):
        if one.job_id in fine:
            right |= sample_together_of(expected, [one])
    return {
        name: one if isinstance(one, str) else one == right[name] for name, one in found.items()
    }


def sample_together(engine: Engine, samples: dict[str, int], mebibytes: int) -> dict[str, Any]:
    """Run the jobs in the engine itself."""
    with room(mebibytes):
        return sample_together_of(engine, sampling_jobs(samples))


def sample_together_of(engine: Engine, jobs: list[Any]) -> dict[str, Any]:
    """Run jobs to their ends; give an error's text or the bits of each."""
    for one in jobs:
        engine.add_sample(one)
    found: dict[str, Any] = {}
    while engine.has_sampling_work():
        for end in engine.step():
            found[end.job_id] = _bits(end.error or end.response)
    return found


def sample_through_jobs(engine: Engine, samples: dict[str, int], mebibytes: int) -> dict[str, Any]:
    """Have the server's thread run them."""

    async def run() -> dict[str, Any]:
        faults: list[BaseException] = []
        jobs = EngineJobs(engine, name="x", clock=SystemClock(), on_fault=faults.append)
        futures = {one.job_id: jobs.sample(one) for one in sampling_jobs(samples)}
        jobs.start()
        with room(mebibytes):
            outcomes = await asyncio.gather(*futures.values(), return_exceptions=True)
        await jobs.stop()
        assert faults == []
        return {name: _bits(one) for name, one in zip(futures, outcomes, strict=True)}

    return asyncio.run(run())


def _bits(outcome: Any) -> Any:
    if isinstance(outcome, EngineError):
        return f"{outcome.category}: {outcome}"
    if isinstance(outcome, BaseException):
        raise outcome
    return [(s.tokens_np.tobytes(), s.logprobs_np.tobytes()) for s in outcome.sequences]
