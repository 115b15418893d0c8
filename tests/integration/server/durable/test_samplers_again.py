"""Sampling sessions after a restart: each has the weights that it had, or says why not."""

import asyncio
import sqlite3
import threading
from contextlib import closing

import pytest
from patience import PATIENCE_S
from server_support import OTHER_KEY, batch_json, sample_json

from tinkex.engine.files import checkpoint
from tinkex.server.durable.snapshots import Snapshots
from tinkex.server.files.layout import DATABASE_NAME

OTHER = {"key": OTHER_KEY}
STEP = {"type": "optim_step", "adam_params": {"learning_rate": 0.1}}


def address(path):
    """The checkpoint's address below /api/v1."""
    run, rest = path.removeprefix("tinker://").split("/", 1)
    return f"/training_runs/{run}/checkpoints/{rest}"


async def trained(api, model, first):
    await api.result(await api.ok("/forward_backward", batch_json(model, first)))
    await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": first + 1, **STEP}))


async def saved(api, model, seq_id, kind="save_weights", **fields):
    body = {"model_id": model, "seq_id": seq_id, "path": "one", **fields}
    return (await api.result(await api.ok(f"/{kind}", body)))["path"]


async def sampler_on(api, path, **kwargs):
    body = {"session_id": await api.session(**kwargs), "sampling_session_seq_id": 0}
    made = await api.ok("/create_sampling_session", {**body, "model_path": path}, **kwargs)
    return made["sampling_session_id"]


async def sampled(api, sampler, seq_id, **kwargs):
    body = sample_json(sampler, seq_id, max_tokens=16, stop=[])
    return await api.result(await api.ok("/asample", body, **kwargs), **kwargs)


@pytest.mark.parametrize("owner_is_first", [True, False])
async def test_checkpoint_that_is_public_no_more_is_its_owners_to_sample_from(life, owner_is_first):
    async with life() as api:
        path = await saved(api, await api.model(), 1, "save_weights_for_sampler")
        await api.ok(f"{address(path)}/publish")
        mine = await sampler_on(api, path) if owner_is_first else None
        others = await sampler_on(api, path, **OTHER)
        mine = mine or await sampler_on(api, path)
        before = (await sampled(api, mine, 0))["sequences"]
        assert (await api.request("DELETE", f"{address(path)}/publish")).status_code == 200
    async with life() as api:
        refused = await sampled(api, others, 1, **OTHER)
        assert "There is no checkpoint" in refused["error"]
        assert (await sampled(api, mine, 1))["sequences"][0]["tokens"] == before[0]["tokens"]


async def test_sampler_of_a_checkpoint_that_was_saved_anew_does_not_get_the_new_weights(life):
    async with life() as api:
        model = await api.model()
        await trained(api, model, 1)
        path = await saved(api, model, 3)
        sampler = await sampler_on(api, path)
        before = (await sampled(api, sampler, 0))["sequences"][0]
        for first in (4, 6, 8):
            await trained(api, model, first)
        await saved(api, model, 10, overwrite=True)
        fresh = await sampler_on(api, path)
        assert (await sampled(api, fresh, 0))["sequences"][0] != before
        again = (await sampled(api, sampler, 1))["sequences"][0]
        assert (again["tokens"], again["logprobs"]) == (before["tokens"], before["logprobs"])
    async with life() as api:
        reply = await sampled(api, sampler, 2)
        assert reply["category"] == "user"
        assert "saved anew" in reply["error"]
        assert path in reply["error"]
        assert "sequences" in await sampled(api, fresh, 1)


async def test_sampler_that_the_database_refused_is_not_there_until_it_takes_it(life):
    async with life() as api:
        database = api.services.config.data_dir / DATABASE_NAME
        path = await saved(api, await api.model(), 1, "save_weights_for_sampler")
        body = {"session_id": await api.session(), "sampling_session_seq_id": 0}
        body["model_path"] = path
        with closing(sqlite3.connect(database)) as connection:
            refuse = "BEFORE INSERT ON samplers BEGIN SELECT RAISE(FAIL, 'refused'); END"
            connection.execute(f"CREATE TRIGGER refusing {refuse}")
        assert (await api.post("/create_sampling_session", body)).status_code >= 500
        await api.quiet()
        assert len(api.services.samplers) == 0
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("DROP TRIGGER refusing")
        sampler = (await api.ok("/create_sampling_session", body))["sampling_session_id"]
        before = (await sampled(api, sampler, 0))["sequences"][0]
    async with life() as api:
        assert (await sampled(api, sampler, 1))["sequences"][0]["tokens"] == before["tokens"]


async def test_weights_that_are_kept_again_are_no_leftover(life, trainer, crashed, monkeypatch):
    """A start clears away what it does not know: not what it makes itself meanwhile."""
    begun, go = threading.Event(), threading.Event()
    write, clear = checkpoint.save_tensors, Snapshots.clear_unknown

    def wait(path, tensors):
        begun.set()
        go.wait(PATIENCE_S)
        return write(path, tensors)

    async with life() as api:
        run = await trainer(api)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_tensors", wait)
            body = {"model_id": run.model_id, "seq_id": 1, "sampling_session_seq_id": 0}
            future = await api.ok("/save_weights_for_sampler", body)
            await asyncio.to_thread(begun.wait, PATIENCE_S)
            found = crashed(api)
            go.set()
            await api.result(future)
    loop = asyncio.get_running_loop()

    def clear_when_all_is_done(snapshots, known):
        done = asyncio.run_coroutine_threadsafe(snapshots._tasks.finished(), loop)
        done.result(PATIENCE_S)
        clear(snapshots, known)

    monkeypatch.setattr(Snapshots, "clear_unknown", clear_when_all_is_done)
    async with life(data_dir=found) as api:
        sampler = (await api.result(future))["sampling_session_id"]
        expected = await sampled(api, sampler, 0)
        await api.services.tasks.finished()
        again = crashed(api)
    assert [one.name for one in (again / "snapshots").iterdir() if "sample" in one.name] == [
        sampler
    ]
    async with life(data_dir=again) as api:
        assert (await sampled(api, sampler, 1))["sequences"] != []
        assert (await api.result({"request_id": future["request_id"]}))["sampling_session_id"]
    assert expected["sequences"]
