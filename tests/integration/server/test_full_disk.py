"""A disk that is full: a typed error, nothing half-written, and work goes on when there is room."""

import contextlib
import os
import subprocess

import pytest
from server_support import batch_json, sample_json

from tinkex.server.files.check import check_data_dir

SIZE = 16 * 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB; where none may be mounted there is no such test."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
async def full(small_disk, make_config, serve):
    async with serve(make_config(data_dir=small_disk / "data")) as api:
        api.disk = small_disk
        yield api


class Filler:
    """Takes all room on a disk but so many bytes, and gives it back."""

    def __init__(self, disk):
        self.path = disk / "filler"

    def fill(self, *, but=0):
        with self.path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        size = self.path.stat().st_size
        os.truncate(self.path, max(0, size - but))

    def free(self):
        self.path.unlink()


async def trained(api):
    model = await api.model()
    await api.result(await api.ok("/forward_backward", batch_json(model, 1)))
    await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 2}))
    return model


def checkpoint_files(api):
    root = api.services.config.data_dir / "checkpoints"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["save_weights", "save_weights_external"])
async def test_save_on_a_full_disk_fails_by_name_and_leaves_what_was_there(full, kind):
    api, filler = full, Filler(full.disk)
    model = await trained(api)
    body = {"model_id": model, "seq_id": 3, "path": "one"}
    if kind == "save_weights":
        body["overwrite"] = True
    path = (await api.result(await api.ok(f"/{kind}", body)))["path"]
    before = checkpoint_files(api)
    filler.fill(but=64 * 1024)  # room for the database, none for a checkpoint
    for number, name in ((4, "one"), (5, "two")):
        future = await api.ok(f"/{kind}", {**body, "seq_id": number, "path": name})
        error, category = await api.failure(future)
        assert category == "server"
        assert "disk is full" in error
        assert f"/{name}" in error or "the database" in error
        assert "Delete checkpoints" in error
        assert checkpoint_files(api) == before
    assert check_data_dir(api.services.config.data_dir).errors == []

    listed = (await api.get("/checkpoints")).json()["checkpoints"]  # the server goes on
    assert [one["tinker_path"] for one in listed] == [path]
    filler.free()
    sampler = await api.sampler()
    await api.result(await api.ok("/asample", sample_json(sampler)))
    saved = await api.result(await api.ok(f"/{kind}", {**body, "seq_id": 6, "path": "two"}))
    assert saved["path"].endswith("/two")
    report = check_data_dir(api.services.config.data_dir)
    assert (report.errors, report.warnings, report.folders) == ([], [], 2)
    load = {"session_id": await api.session(), "model_seq_id": 0, "path": path}
    assert "model_id" in await api.result(
        await api.ok("/load_weights", {**load, "optimizer": False})
    )


async def test_database_without_room_asks_to_come_again_and_takes_it_then(full):
    api, filler = full, Filler(full.disk)
    model = await trained(api)
    filler.fill()
    session = {"tags": ["x" * 20_000], "user_metadata": {}, "sdk_version": "t"}
    response = await api.post("/create_session", session)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "disk is full" in response.json()["detail"]
    filler.free()
    assert (await api.post("/create_session", session)).status_code == 200
    body = {"model_id": model, "seq_id": 3, "path": "one"}
    assert "path" in await api.result(await api.ok("/save_weights", body))
    report = check_data_dir(api.services.config.data_dir)
    assert (report.errors, report.warnings, report.folders) == ([], [], 1)


async def test_row_that_finds_no_room_takes_its_checkpoint_along(full, monkeypatch):
    """The folder fits and the row does not: neither is left, and what was replaced is back."""
    api, filler = full, Filler(full.disk)
    model = await trained(api)
    body = {"model_id": model, "seq_id": 3, "path": "one", "overwrite": True}
    path = (await api.result(await api.ok("/save_weights", body)))["path"]
    before = checkpoint_files(api)
    put = api.services.store.put_checkpoint

    async def put_on_a_full_disk(row):
        filler.fill()
        await put(row)

    monkeypatch.setattr(api.services.store, "put_checkpoint", put_on_a_full_disk)
    metadata = {"k": "v" * 20_000}
    future = await api.ok("/save_weights", {**body, "seq_id": 4, "user_metadata": metadata})
    error, category = await api.failure(future)
    assert category == "server"
    assert "disk is full" in error
    monkeypatch.undo()
    filler.free()
    assert checkpoint_files(api) == before
    assert check_data_dir(api.services.config.data_dir).errors == []
    load = {"session_id": await api.session(), "model_seq_id": 0, "path": path}
    assert "model_id" in await api.result(
        await api.ok("/load_weights", {**load, "optimizer": True})
    )


async def test_request_that_finds_no_room_is_refused_and_taken_when_there_is(full):
    api, filler = full, Filler(full.disk)
    model = await trained(api)
    filler.fill()
    body = batch_json(model, 3, tokens=[5] * 100)
    responses = [await api.post("/forward_backward", {**body, "seq_id": 3 + n}) for n in range(40)]
    refused = [response for response in responses if response.status_code != 200]
    assert refused
    for response in refused:
        assert response.status_code in {429, 503}
        assert int(response.headers["retry-after"]) > 0
        assert "disk" in response.json()["detail"]
    filler.free()
    taken = len(responses) - len(refused)
    future = await api.ok("/forward_backward", {**body, "seq_id": 3 + taken})
    assert "loss_fn_outputs" in await api.result(future)


@pytest.mark.parametrize("path", ["/forward_backward", "/asample"])
async def test_request_that_cannot_be_kept_is_refused_and_leaves_nothing(full, path):
    api, filler = full, Filler(full.disk)
    model, sampler = await api.model(), await api.sampler()
    long = [5 + i % 200 for i in range(100)]
    body = {
        "/forward_backward": batch_json(model, 1, tokens=long),
        "/asample": sample_json(sampler, 0, tokens=long),
    }[path]
    filler.fill()
    response = await api.post(path, body)
    while response.status_code == 200:  # the database's files have a little room within
        body["seq_id"] += 1
        response = await api.post(path, body)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "Nothing was done" in response.json()["detail"]
    filler.free()
    # The same request again is a new one: it is taken, and done once.
    while (response := await api.post(path, body)).status_code == 503:
        api.services.journal.retry()
    assert "error" not in await api.result(response.json())


async def test_result_that_cannot_be_kept_waits_and_is_told_when_there_is_room(
    small_disk, make_config, serve
):
    config = make_config(data_dir=small_disk / "data", long_poll_s=0.2)
    async with serve(config) as api:
        filler = Filler(small_disk)
        sampler = await api.sampler()
        futures = [
            await api.ok(
                "/asample", sample_json(sampler, n, max_tokens=60, num_samples=16, stop=[])
            )
            for n in range(20)
        ]
        filler.fill()
        waiting = None
        while waiting is None:
            for future in futures:
                reply = await api.ok("/retrieve_future", {"request_id": future["request_id"]})
                if reply.get("queue_state") == "paused_capacity":
                    waiting = reply
        assert "disk is full" in waiting["queue_state_reason"]
        filler.free()
        for future in futures:
            assert len((await api.result(future))["sequences"]) == 16


async def test_sampler_that_finds_no_room_leaves_none_in_memory_or_on_the_disk(full, monkeypatch):
    api, filler = full, Filler(full.disk)
    model = await api.model(rank=64)
    folders = api.services.config.data_dir / "snapshots"

    async def published(number):
        body = {"model_id": model, "seq_id": 1 + number, "sampling_session_seq_id": number}
        body["kind"] = "snapshot"
        return await api.result(await api.ok("/save_weights_for_sampler", body))

    first = (await published(0))["sampling_session_id"]
    size = sum(path.stat().st_size for path in (folders / first).iterdir())
    held = api.pool.sampler_ids
    add = api.services.store.add_sampler

    async def add_on_a_full_disk(row):
        filler.fill()
        await add(row)

    for number, what in ((1, "the weights of sampling session"), (2, "a change of the database")):
        if number == 1:
            filler.fill(but=size - 4096)  # room for the database, none for the weights
        else:
            monkeypatch.setattr(api.services.store, "add_sampler", add_on_a_full_disk)
        reply = await published(number)
        error, category = reply.get("error", ""), reply.get("category")
        assert category == "server"
        assert f"disk is full: {what}" in error
        filler.free()
        await api.quiet()
        assert api.pool.sampler_ids == held
        assert [one.name for one in folders.glob("*:sample:*")] == [first]
    monkeypatch.undo()
    sampler = (await published(3))["sampling_session_id"]
    assert "sequences" in await api.result(await api.ok("/asample", sample_json(sampler)))
