"""Several things done to one checkpoint at once: each counts, and no row is left without files."""

import asyncio
import sqlite3
from contextlib import closing

import pytest
from server_support import batch_json, sample_json

from tinkex.engine.files import checkpoint
from tinkex.server.files.check import check_data_dir
from tinkex.server.files.layout import DATABASE_NAME

ROUNDS = 8


def address(path):
    """The checkpoint's address below /api/v1."""
    run, rest = path.removeprefix("tinker://").split("/", 1)
    return f"/training_runs/{run}/checkpoints/{rest}"


async def saved(api, model, seq_id, **fields):
    body = {"model_id": model, "seq_id": seq_id, "path": "one", **fields}
    return (await api.result(await api.ok("/save_weights", body)))["path"]


async def listed(api):
    return (await api.get("/checkpoints")).json()["checkpoints"]


async def test_publishing_and_an_end_that_are_asked_for_at_once_both_count(api):
    path = await saved(api, await api.model(), 1)
    for number in range(ROUNDS):
        change = "POST" if number % 2 == 0 else "DELETE"
        ttl = 3600 * (number + 1) if number % 2 == 0 else None
        answers = await asyncio.gather(
            api.request(change, f"{address(path)}/publish"),
            api.request("PUT", f"{address(path)}/ttl", {"ttl_seconds": ttl}),
        )
        assert [one.status_code for one in answers] == [200, 200]
        (entry,) = await listed(api)
        assert (entry["public"], "expires_at" in entry) == (number % 2 == 0, ttl is not None)


async def test_checkpoint_that_is_deleted_while_it_is_changed_is_gone(api):
    model = await api.model()
    for number in range(ROUNDS):
        path = await saved(api, model, number + 1)
        await asyncio.gather(
            api.request("POST", f"{address(path)}/publish"),
            api.request("DELETE", address(path)),
            api.request("PUT", f"{address(path)}/ttl", {"ttl_seconds": 3600}),
        )
        assert await listed(api) == []
    assert check_data_dir(api.services.config.data_dir).errors == []


async def test_checkpoint_that_is_saved_anew_while_it_is_changed_has_the_new_files(api):
    model = await api.model()
    path = await saved(api, model, 1)
    for number in range(ROUNDS):
        first = 2 + 3 * number
        await api.result(await api.ok("/forward_backward", batch_json(model, first)))
        await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": first + 1}))
        async with asyncio.TaskGroup() as group:
            group.create_task(saved(api, model, first + 2, overwrite=True))
            for n in range(20):
                change = "POST" if n % 2 else "DELETE"
                group.create_task(api.request(change, f"{address(path)}/publish"))
    assert check_data_dir(api.services.config.data_dir).errors == []


async def test_name_that_is_deleted_and_saved_at_once_is_there_whole_or_not_at_all(api):
    model = await api.model()
    path = await saved(api, model, 1)
    for number in range(ROUNDS):
        async with asyncio.TaskGroup() as group:
            group.create_task(saved(api, model, number + 2, overwrite=True))
            for _ in range(8):
                group.create_task(api.request("DELETE", address(path)))
        assert check_data_dir(api.services.config.data_dir).errors == []


@pytest.fixture
def replaced(monkeypatch):
    """Have a folder replaced when a file of this name was read: `replaced(name, old, new)`."""
    read = checkpoint.load_tensors

    def arrange(name, old, new):
        def read_and_replace(path, sha256):
            found = read(path, sha256)
            if path.name == name and new.exists():
                old.rename(old.with_name("gone"))
                new.rename(old)
            return found

        monkeypatch.setattr(checkpoint, "load_tensors", read_and_replace)

    return arrange


async def two_saves(api, model):
    """Save a run after each of two steps; give the folders, and their paths."""
    paths = []
    for first in (1, 4):
        await api.result(await api.ok("/forward_backward", batch_json(model, first)))
        await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": first + 1}))
        name = f"save-{first}"
        paths.append(await saved(api, model, first + 2, path=name))
    folder = api.services.config.data_dir / "checkpoints" / model / "weights"
    return [folder / path.rpartition("/")[2] for path in paths], paths


@pytest.mark.parametrize("as_new", [False, True])
async def test_load_while_a_checkpoint_is_saved_anew_is_of_one_save(api, replaced, as_new):
    """Not the weights of one and the optimiser's state of the other."""
    session = await api.session()
    model = await api.model(session)
    (old, new), paths = await two_saves(api, model)
    second = await api.model(session, 1)
    load = {"path": paths[1], "optimizer": True}
    await api.result(await api.ok("/load_weights", {**load, "model_id": second, "seq_id": 1}))
    expected = api.pool.adapter(second).tensors()
    replaced("adapter_model.safetensors", old, new)
    load["path"] = paths[0]
    target = {"session_id": session, "model_seq_id": 2} if as_new else {"model_id": model}
    if not as_new:
        target["seq_id"] = 7
    made = await api.result(await api.ok("/load_weights", {**load, **target}))
    found = api.pool.adapter(made["model_id"]).tensors()
    assert {name: one.tolist() for name, one in found.items()} == {
        name: one.tolist() for name, one in expected.items()
    }


async def test_sampler_of_a_checkpoint_that_is_saved_anew_has_the_new_weights(api):
    """A manifest of one save, and then the file of the other."""
    session = await api.session()
    model = await api.model(session)
    (old, new), paths = await two_saves(api, model)
    prompt = {"temperature": 0.0, "stop": []}

    async def sampled(number, path):
        sampler = await api.sampler(session, number, model_path=path)
        return await api.result(await api.ok("/asample", sample_json(sampler, 0, **prompt)))

    expected = (await sampled(0, paths[1]))["sequences"][0]["logprobs"]
    describe = checkpoint._read_manifest

    def describe_and_replace(folder):
        found = describe(folder)
        if new.exists():
            old.rename(old.with_name("gone"))
            new.rename(old)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_read_manifest", describe_and_replace)
        found = await sampled(1, paths[0])
    assert found["sequences"][0]["logprobs"] == expected


async def test_copy_that_is_asked_for_twice_at_once_is_one_copy(api):
    path = await saved(api, await api.model(), 1)
    for number in range(ROUNDS):
        headers = {"x-idempotency-key": f"copy-{number}"}
        answers = await asyncio.gather(
            *(api.post("/copy_weights", {"source_path": path}, headers=headers) for _ in range(3))
        )
        assert [one.status_code for one in answers] == [200, 200, 200]
        assert len({one.json()["tinker_path"] for one in answers}) == 1
    assert len(await listed(api)) == 1 + ROUNDS
    assert check_data_dir(api.services.config.data_dir).errors == []


async def test_copy_that_was_given_up_half_way_is_made_when_it_is_asked_for_again(api):
    path = await saved(api, await api.model(), 1)
    headers = {"x-idempotency-key": "copy"}
    with closing(sqlite3.connect(api.services.config.data_dir / DATABASE_NAME)) as database:
        refuse = "BEFORE INSERT ON training_runs BEGIN SELECT RAISE(FAIL, 'refused'); END"
        database.execute(f"CREATE TRIGGER refusing {refuse}")
    refused = await api.post("/copy_weights", {"source_path": path}, headers=headers)
    assert refused.status_code >= 500
    with closing(sqlite3.connect(api.services.config.data_dir / DATABASE_NAME)) as database:
        database.execute("DROP TRIGGER refusing")
    copied = await api.ok("/copy_weights", {"source_path": path}, headers=headers)
    assert {one["tinker_path"] for one in await listed(api)} == {path, copied["tinker_path"]}
