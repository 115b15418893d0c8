"""Many adapters on one base model: those at work are in memory, the others wait on the disk."""

import asyncio

import psutil
import pytest
from server_support import batch_json, sample_json

from tinkex.server.models.jobs import EngineJobs
from tinkex.testing.clock import VirtualClock
from tinkex.types import AdamParams, LoraConfig

COUNT = 1200
ROOM = 24
"""Adapters that fit into memory."""


async def test_twelve_hundred_adapters_live_in_the_memory_of_two_dozen(make_engine, tmp_path):
    probe = make_engine()
    probe.create_adapter("x", LoraConfig(rank=1))
    nbytes = probe.places()["adapter", "host"][1]
    engine = make_engine(host_adapter_bytes=ROOM * nbytes, spill_directory=tmp_path / "spill")
    jobs = EngineJobs(engine, name="many", clock=VirtualClock(), on_fault=print)
    jobs.start()

    async def create(numbers):
        for n in numbers:
            await jobs.call(
                f"run{n}",
                lambda one, n=n: one.create_adapter(f"run{n}", LoraConfig(rank=1, seed=n)),
            )

    process = psutil.Process()
    await create(range(ROOM * 2))
    before = process.memory_info().rss
    await asyncio.gather(
        *(create(range(first, COUNT, 8)) for first in range(ROOM * 2, ROOM * 2 + 8))
    )
    grown = process.memory_info().rss - before
    seen = await jobs.call("places", lambda one: one.places())
    assert seen["adapter", "host"][0] <= ROOM
    assert seen["adapter", "host"][0] + seen["adapter", "disk"][0] == COUNT
    assert grown < 0.5 * (COUNT - 2 * ROOM) * nbytes + 16 * 2**20
    # each of them goes on where it was, oldest and newest alike
    for n in (0, COUNT // 2, COUNT - 1):
        found = await jobs.call(
            f"run{n}", lambda one, n=n: one.optim_step(f"run{n}", AdamParams(learning_rate=0.1))
        )
        assert found["grad_norm"] == 0
    await jobs.stop()
    engine.close()


@pytest.fixture
async def idle(make_config, make_engine, serve, tmp_path):
    clock = VirtualClock()
    engine = make_engine(spill_directory=tmp_path / "spill")
    engine._pool._now = clock.monotonic
    config = make_config(idle_adapter_s=100.0, session_ttl_s=10_000.0)
    async with serve(config, clock, engine) as api:
        api.clock = clock
        yield api


async def test_run_that_rests_leaves_memory_and_comes_back_at_its_next_request(idle, advance_all):
    api = idle
    models = [await api.model() for _ in range(20)]
    first = await api.result(await api.ok("/forward_backward", batch_json(models[0], 1)))
    await advance_all(api, 60)
    await api.result(await api.ok("/forward_backward", batch_json(models[1], 1)))
    await advance_all(api, 75)
    places = [api.pool.where("adapter", one) for one in models]
    assert places == ["disk", "host", *["disk"] * 18]
    again = await api.result(await api.ok("/forward_backward", batch_json(models[0], 2)))
    assert again["metrics"]["loss:sum"] == first["metrics"]["loss:sum"]
    assert api.pool.where("adapter", models[0]) == "host"
    sampler = await api.sampler()
    await api.result(await api.ok("/asample", sample_json(sampler)))


@pytest.fixture
def advance_all():
    async def advance(api, seconds):
        """Let time pass in steps, and the engine do what comes of each."""
        for _ in range(seconds // 5):
            api.clock.advance(5)
            for _ in range(5):
                await api.quiet()

    return advance
