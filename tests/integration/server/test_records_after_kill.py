"""A server that is killed before it wrote its figures down: the next one has them, each once.

As in test_restart, the end is a copy of the data folder.
"""

import shutil
from contextlib import asynccontextmanager

import pytest
from server_support import batch_json, sample_json, serving

from tinkex._clock import SystemClock
from tinkex.server.records import ledger


@pytest.fixture
def serve(make_config, make_engine, tmp_path):
    @asynccontextmanager
    async def make(name, **settings):
        settings = {"snapshot_steps": 1000, "snapshot_quiet_s": 1000.0, **settings}
        async with serving(
            make_config(data_dir=tmp_path / name, **settings), make_engine(), SystemClock()
        ) as api:
            yield api

    return make


@pytest.fixture
def kill(tmp_path):
    async def copy(api):
        await api.quiet()
        await api.services.tasks.finished()
        await api.services.journal.flush()
        ignored = shutil.ignore_patterns("spill", "lock")
        shutil.copytree(tmp_path / "first", tmp_path / "second", ignore=ignored)

    return copy


@pytest.fixture
def never_written(monkeypatch):
    """Keep what has ended in memory until somebody asks."""
    monkeypatch.setattr(ledger, "FLUSH_S", 1000.0)


async def train(api, model, first, steps):
    for step in range(steps):
        seq_id = first + 2 * step
        for path, body in (
            ("/forward_backward", batch_json(model, seq_id)),
            ("/optim_step", {"model_id": model, "seq_id": seq_id + 1}),
        ):
            await api.result(await api.ok(path, body))


async def curve(api, model):
    answer = (await api.get(f"/training_runs/{model}/metrics")).json()
    return [(row["step"], row["operation"], row["metrics"]) for row in answer["metrics"]]


@pytest.mark.usefixtures("never_written")
async def test_what_is_carried_out_again_is_written_down_then(serve, kill):
    async with serve("first") as api:
        model = await api.model()
        await train(api, model, 1, 3)
        await kill(api)
        whole = await curve(api, model)
        used = await api.services.ledger.used(api.owner)
    async with serve("second") as api:
        await api.services.tasks.finished()
        assert await curve(api, model) == whole
        found = await api.services.ledger.used(api.owner)
        assert found.forward_backward_tokens == used.forward_backward_tokens == 12
        assert found.training_s > 0
        await train(api, model, 7, 1)
        assert [step for step, *_ in await curve(api, model)] == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.usefixtures("never_written")
async def test_nothing_is_counted_twice(serve, kill, written):
    async with serve("first") as api:
        model = await api.model()
        await train(api, model, 1, 2)
        if written:
            await api.services.ledger.flush()
        await train(api, model, 5, 1)
        await kill(api)
        whole = await curve(api, model)
    async with serve("second") as api:
        await api.services.tasks.finished()
        used = await api.services.ledger.used(api.owner)
        assert used.forward_backward_tokens <= 12
        assert await curve(api, model) == whole
        used = await api.services.ledger.used(api.owner)
        assert used.forward_backward_tokens == 12
        (row,) = (await api.get("/usage?by=source")).json()["rows"]
        assert row["forward_backward_tokens"] == 12
        assert row["source"] == model


@pytest.mark.usefixtures("never_written")
async def test_what_a_snapshot_covers_is_written_with_it(serve, kill):
    async with serve("first", snapshot_steps=2) as api:
        model = await api.model()
        await train(api, model, 1, 4)
        await kill(api)
        whole = await curve(api, model)
    assert len(whole) == 8
    async with serve("second") as api:
        await api.services.tasks.finished()
        assert await curve(api, model) == whole


async def test_a_sample_that_had_ended_is_counted_if_it_was_written(serve, kill):
    async with serve("first") as api:
        sampler = await api.sampler()
        body = sample_json(sampler, max_tokens=3, stop=[])
        await api.result(await api.ok("/asample", body))
        await api.services.ledger.flush()
        await kill(api)
    async with serve("second") as api:
        await api.services.tasks.finished()
        assert (await api.services.ledger.used(api.owner)).sampled_tokens == 3
