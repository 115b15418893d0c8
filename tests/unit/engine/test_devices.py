"""One code path for every device: what a GPU gives equals what a CPU gives, but for rounding.

Marked `gpu` and left out where there is none. The same tests run on the CPU against itself, so that
they are known to work before a GPU sees them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import datum, job, sample, tiny_engine, tiny_model, tokens

from tinkex.types import AdamParams, LoraConfig

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ],
    ),
]
FAMILIES = ["qwen3", "mistral", "gemma3_text", "qwen3_moe", "gpt_oss"]
NAMES = ("a", "b", "c")


def engine_on(device, family):
    engine = tiny_engine(model=tiny_model(family).to(device), device=device)
    for number, name in enumerate(NAMES):
        engine.create_adapter(name, LoraConfig(rank=2 + 6 * number, seed=number))
        flat = engine._pool.adapter(name).weights.flat
        noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            flat.add_(noise.to(device), alpha=0.05)
        engine.snapshot_sampler(name, name)
    return engine


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_of_several_runs_equals_the_cpus(device, family):
    found = []
    for engine in (engine_on("cpu", family), engine_on(device, family)):
        tasks = [
            engine.begin_forward_backward(n, [datum(5 + i), datum(9, seed=i)], "cross_entropy")
            for i, n in enumerate(NAMES)
        ]
        engine.run_together(tasks)
        losses = [task.result().metrics["loss:sum"] for task in tasks]
        gradients = [engine._pool.adapter(n).gradient.cpu() for n in NAMES]
        for name in NAMES:
            engine.optim_step(name, AdamParams(learning_rate=1e-3))
        found.append((losses, gradients))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    for one, other in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_many_adapters_equal_the_cpus(device, family):
    jobs = [
        job(f"{name} {n}", tokens(70, seed=n), name, temperature=0.0, max_tokens=12, stop=[])
        for n in range(2)
        for name in (*NAMES, None)
    ]
    first, second = (
        sample(e, *jobs) for e in (engine_on("cpu", family), engine_on(device, family))
    )
    for one in jobs:
        expected, found = (done[one.job_id].sequences[0] for done in (first, second))
        assert found.tokens == expected.tokens
        np.testing.assert_allclose(found.logprobs_np, expected.logprobs_np, atol=1e-4)
