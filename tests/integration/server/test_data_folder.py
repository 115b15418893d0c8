"""The data folder of a live server: backed up under load, restored, damaged, full."""

import asyncio
import os
import stat

import pytest
from server_support import BASE_MODEL, batch_json, sample_json

from tinkex._clock import SystemClock
from tinkex.errors import ConfigurationError
from tinkex.server.files.backup import back_up, restore
from tinkex.server.files.check import check_data_dir
from tinkex.server.storage.checkpoints import parse_path


async def trained(api):
    """A run after one step."""
    model = await api.model()
    await api.result(await api.ok("/forward_backward", batch_json(model, 1)))
    await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 2}))
    return model


async def save(api, model, number, name, kind="save_weights", **fields):
    body = {"model_id": model, "seq_id": number, "path": name, **fields}
    return await api.result(await api.ok(f"/{kind}", body))


async def load(api, path, number=0):
    body = {"session_id": await api.session(), "model_seq_id": number, "path": path}
    return await api.result(await api.ok("/load_weights", {**body, "optimizer": True}))


async def sampled(api, path):
    sampler = await api.sampler(model_path=path)
    return (await api.result(await api.ok("/asample", sample_json(sampler))))["sequences"]


async def test_backup_under_load_is_served_after_it_was_restored(make_config, serve, tmp_path):
    config = make_config(snapshot_steps=1)
    async with serve(config) as api:
        model = await trained(api)
        kept = (await save(api, model, 3, "kept", "save_weights_for_sampler"))["path"]
        before = await sampled(api, kept)
        stop = asyncio.Event()

        async def keep_saving():
            number = 4
            while not stop.is_set():
                await save(api, model, number, "same", overwrite=True)
                await save(api, model, number + 1, f"n{number}")
                await api.result(await api.ok("/forward_backward", batch_json(model, number + 2)))
                step = {"model_id": model, "seq_id": number + 3}
                await api.result(await api.ok("/optim_step", step))
                path = f"/training_runs/{model}/checkpoints/weights/n{number}"
                if number % 8 == 0:
                    assert (await api.request("DELETE", path)).status_code == 200
                number += 4
            return number

        saving = asyncio.create_task(keep_saving())
        backups = []
        for number in range(3):
            target = tmp_path / f"backup{number}"
            taken = asyncio.to_thread(back_up, config.data_dir, target, clock=SystemClock())
            backups.append(await taken)
            report = await asyncio.to_thread(check_data_dir, config.data_dir)
            assert report.errors == []
        stop.set()
        assert await saving > 4
    assert backups[-1].folders > 1
    for number in range(3):
        assert check_data_dir(tmp_path / f"backup{number}").errors == []

    data_dir = tmp_path / "restored" / "data"
    restore(tmp_path / "backup2", data_dir)
    async with serve(make_config(data_dir=data_dir)) as api:
        assert (await api.post("/get_info", {"model_id": model})).status_code == 200
        assert await sampled(api, kept) == before
        listed = (await api.get("/checkpoints")).json()["checkpoints"]
        assert {one["checkpoint_type"] for one in listed} == {"training", "sampler"}
        for one in listed:
            if one["checkpoint_type"] == "training":
                assert "model_id" in await load(api, one["tinker_path"])


async def test_damaged_database_stops_the_start_and_a_backup_brings_it_back(
    make_config, serve, tmp_path
):
    config = make_config()
    async with serve(config) as api:
        path = (await save(api, await trained(api), 3, "kept"))["path"]
        await asyncio.to_thread(back_up, config.data_dir, tmp_path / "b", clock=SystemClock())
    database = config.data_dir / "tinkex.sqlite3"
    assert (config.data_dir / "tinkex.sqlite3-seal").is_file()
    before = database.stat()
    content = database.read_bytes()
    assert BASE_MODEL.encode() in content
    database.write_bytes(content.replace(BASE_MODEL.encode(), BASE_MODEL.upper().encode()))
    os.utime(database, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ConfigurationError, match="tinkex restore"):
        async with serve(config):
            pass
    config.data_dir.rename(tmp_path / "damaged")
    restore(tmp_path / "b", config.data_dir)
    async with serve(config) as api:
        assert not (config.data_dir / "tinkex.sqlite3-seal").exists()
        assert "model_id" in await load(api, path)


@pytest.mark.parametrize(
    "name", ["tinkex.json", "adapter_model.safetensors", "optimizer.safetensors"]
)
async def test_damaged_checkpoint_is_not_loaded_and_says_so(api, name):
    model = await trained(api)
    path = (await save(api, model, 3, "one"))["path"]
    file = api.services.blobs.folder(parse_path(path)) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    error, category = (await load(api, path)).values()
    assert category == "server"
    assert "damaged" in error
    assert (await load(api, (await save(api, model, 4, "two"))["path"]))["model_id"]


async def test_damaged_manifest_is_told_at_once_where_no_future_is(api):
    model = await trained(api)
    path = (await save(api, model, 3, "one", "save_weights_for_sampler"))["path"]
    file = api.services.blobs.folder(parse_path(path)) / "tinkex.json"
    file.write_text(file.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    body = {"session_id": await api.session(), "sampling_session_seq_id": 0, "model_path": path}
    response = await api.post("/create_sampling_session", body)
    assert response.status_code == 500
    assert response.headers["x-should-retry"] == "false"
    assert "tinkex check" in response.json()["detail"]


async def test_everything_in_the_data_folder_is_its_owners_alone(api):
    model = await trained(api)
    await save(api, model, 3, "one")
    await save(api, model, 4, "out", "save_weights_external")
    data_dir = api.services.config.data_dir
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    modes = {entry: stat.S_IMODE(entry.stat().st_mode) for entry in data_dir.rglob("*")}
    assert {mode for entry, mode in modes.items() if entry.is_file()} == {0o600}
    assert {mode for entry, mode in modes.items() if entry.is_dir()} == {0o700}
