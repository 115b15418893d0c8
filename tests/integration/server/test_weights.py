"""Checkpoints: saved, loaded, listed, expired, deleted, and there after a restart."""

import asyncio
import threading

import pytest
from patience import PATIENCE_S
from server_support import ALIAS, BASE_MODEL, batch_json, settle

from tinkex.engine.engine import Engine
from tinkex.engine.files import checkpoint


async def step(api, model, seq_id, learning_rate=0.05):
    """One training step: (loss, the next seq_id)."""
    batch = await api.ok("/forward_backward", batch_json(model, seq_id))
    body = {
        "model_id": model,
        "seq_id": seq_id + 1,
        "adam_params": {"learning_rate": learning_rate},
    }
    await api.result(await api.ok("/optim_step", body))
    return (await api.result(batch))["metrics"]["loss:sum"]


async def save(api, model, seq_id, name="one", **fields):
    body = {"model_id": model, "seq_id": seq_id, "path": name, **fields}
    return await api.result(await api.ok("/save_weights", body))


async def load(api, session, number, path, *, optimizer=True, **fields):
    body = {
        "session_id": session,
        "model_seq_id": number,
        "path": path,
        "optimizer": optimizer,
        **fields,
    }
    return await api.result(await api.ok("/load_weights", body))


async def trained(api, session, number=0):
    model = await api.model(session, number)
    for seq_id in (1, 3, 5):
        await step(api, model, seq_id)
    return model


async def test_run_made_from_a_checkpoint_goes_on_exactly(api):
    session = await api.session()
    model = await trained(api, session)
    path = (await save(api, model, 7))["path"]
    assert path == f"tinker://{model}/weights/one"
    loaded = await load(api, session, 1, path)
    assert loaded == {"path": path, "model_id": f"{session}:train:1"}
    there = [await step(api, model, seq_id) for seq_id in (8, 10, 12)]
    here = [await step(api, loaded["model_id"], seq_id) for seq_id in (1, 3, 5)]
    assert here == there


async def test_without_the_optimizer_only_the_weights_come_along(api):
    session = await api.session()
    model = await trained(api, session)
    path = (await save(api, model, 7))["path"]
    loaded = (await load(api, session, 1, path, optimizer=False))["model_id"]
    there = [await step(api, model, seq_id) for seq_id in (8, 10, 12)]
    here = [await step(api, loaded, seq_id) for seq_id in (1, 3, 5)]
    assert here[0] == there[0]
    assert here[2] != there[2]


async def test_checkpoint_is_loaded_into_a_run_that_exists(api):
    session = await api.session()
    model = await trained(api, session)
    path = (await save(api, model, 7))["path"]
    before = await step(api, model, 8)
    await step(api, model, 10)
    body = {"model_id": model, "seq_id": 12, "path": path, "optimizer": True}
    assert (await api.result(await api.ok("/load_weights", body)))["model_id"] == model
    assert await step(api, model, 13) == before


async def test_load_pipelined_right_behind_its_save_finds_it(api):
    session = await api.session()
    model = await trained(api, session)
    path = f"tinker://{model}/weights/piped"
    saving = await api.ok("/save_weights", {"model_id": model, "seq_id": 7, "path": "piped"})
    loading = await api.ok(
        "/load_weights", {"model_id": model, "seq_id": 8, "path": path, "optimizer": True}
    )
    after = await api.ok("/forward_backward", batch_json(model, 9))
    assert (await api.result(saving))["path"] == path
    assert (await api.result(loading))["path"] == path
    assert "metrics" in await api.result(after)


async def test_shape_of_the_adapter_comes_from_the_checkpoint(api):
    session = await api.session()
    model = await api.model(session, rank=3)
    path = (await save(api, model, 1))["path"]
    loaded = (await load(api, session, 1, path, base_model=ALIAS))["model_id"]
    info = await api.ok("/get_info", {"model_id": loaded})
    assert info["lora_rank"] == 3
    assert info["model_name"] == ALIAS
    assert (await api.ok("/weights_info", {"tinker_path": path})) == {
        "base_model": BASE_MODEL,
        "optimizer_config": {"type": "adamw"},
        "is_lora": True,
        "lora_rank": 3,
        "train_unembed": True,
        "train_mlp": True,
        "train_attn": True,
    }


async def test_repeated_load_makes_one_run(api):
    session = await api.session()
    path = (await save(api, await api.model(session), 1))["path"]
    body = {"session_id": session, "model_seq_id": 1, "path": path, "optimizer": False}
    first = await api.ok("/load_weights", body)
    assert await api.ok("/load_weights", body) == first
    await api.result(first)
    assert len(api.pool.adapter_ids) == 2


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        ("/save_weights", {"path": "one"}),
        ("/save_weights_for_sampler", {"path": "one"}),
        ("/save_weights_for_sampler", {"sampling_session_seq_id": 0}),
        ("/save_weights_external", {"path": "one"}),
    ],
)
async def test_others_are_served_while_the_disk_takes_its_time(api, monkeypatch, endpoint, fields):
    begun, go = threading.Event(), threading.Event()
    write = checkpoint.save_tensors

    def wait(path, tensors):
        begun.set()
        go.wait(PATIENCE_S)
        return write(path, tensors)

    model, other = await api.model(), await api.model()
    monkeypatch.setattr(checkpoint, "save_tensors", wait)
    save = await api.ok(endpoint, {"model_id": model, "seq_id": 1, **fields})
    later = await api.ok("/forward_backward", batch_json(model, 2))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    try:
        async with asyncio.timeout(PATIENCE_S / 4):
            await step(api, other, 1)
    finally:
        go.set()
    assert "error" not in await api.result(save)
    assert "metrics" in await api.result(later)


async def test_copies_that_wait_for_a_slow_disk_are_bounded(api, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    write, copy, copied = checkpoint.save_tensors, Engine.copy_adapter, []

    def wait(path, tensors):
        begun.set()
        go.wait(PATIENCE_S)
        return write(path, tensors)

    def noted(engine, adapter_id, *, optimizer):
        copied.append(adapter_id)
        return copy(engine, adapter_id, optimizer=optimizer)

    models = [await api.model() for _ in range(3)]
    monkeypatch.setattr(checkpoint, "save_tensors", wait)
    monkeypatch.setattr(Engine, "copy_adapter", noted)
    monkeypatch.setattr(api.services.saving, "_copies", asyncio.Semaphore(1))
    saves = [
        await api.ok("/save_weights", {"model_id": model, "seq_id": 1, "path": "one"})
        for model in models
    ]
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    try:
        await step(api, await api.model(), 1)  # what the engine was asked for before is done
        assert len(copied) == 1
    finally:
        go.set()
    for save in saves:
        assert "error" not in await api.result(save)
    assert sorted(copied) == sorted(models)


async def test_existing_name_is_kept_unless_told_otherwise(api):
    session = await api.session()
    model = await trained(api, session)
    await save(api, model, 7)
    error, category = await api.failure(
        await api.ok("/save_weights", {"model_id": model, "seq_id": 8, "path": "one"})
    )
    assert category == "user"
    assert "exists" in error
    assert "path" in await save(api, model, 9, overwrite=True)
    listed = (await api.get(f"/training_runs/{model}/checkpoints")).json()["checkpoints"]
    assert [entry["checkpoint_id"] for entry in listed] == ["weights/one"]


async def test_sampler_weights_have_no_optimizer_to_load(api):
    session = await api.session()
    model = await api.model(session)
    body = {"model_id": model, "seq_id": 1, "path": "one"}
    path = (await api.result(await api.ok("/save_weights_for_sampler", body)))["path"]
    refused = await load(api, session, 1, path, optimizer=True)
    assert refused["category"] == "user"
    assert "optimiser" in refused["error"]
    assert "model_id" in await load(api, session, 2, path, optimizer=False)


async def test_nameless_checkpoint_is_named_after_its_place(api):
    model = await api.model()
    result = await api.result(await api.ok("/save_weights", {"model_id": model, "seq_id": 1}))
    assert result["path"] == f"tinker://{model}/weights/000001"


async def test_records_are_listed_newest_first_and_paged(api):
    session = await api.session()
    models = [await api.model(session, number) for number in range(3)]
    for model in models:
        await save(api, model, 1, user_metadata={"k": "v"})
    page = (await api.get("/training_runs?limit=2&offset=1")).json()
    assert [run["training_run_id"] for run in page["training_runs"]] == [models[1], models[0]]
    assert page["cursor"] == {"offset": 1, "limit": 2, "total_count": 3}
    run = (await api.get(f"/training_runs/{models[0]}")).json()
    assert run == page["training_runs"][1]
    assert run["last_checkpoint"]["user_metadata"] == {"k": "v"}
    assert run["last_checkpoint"]["size_bytes"] > 1000
    listed = (await api.get("/checkpoints")).json()
    assert [entry["tinker_path"] for entry in listed["checkpoints"]] == [
        f"tinker://{model}/weights/one" for model in reversed(models)
    ]
    shown = (await api.get(f"/sessions/{session}")).json()
    assert shown["training_run_ids"] == models
    assert (await api.get("/sessions")).json() == {"sessions": [session]}


async def test_deleted_checkpoint_is_gone_from_list_and_disk(api):
    model = await api.model()
    path = (await save(api, model, 1))["path"]
    folder = api.services.config.data_dir / "checkpoints" / model / "weights" / "one"
    assert (folder / "adapter_model.safetensors").exists()
    url = f"/training_runs/{model}/checkpoints/weights/one"
    assert (await api.request("DELETE", url)).status_code == 200
    assert not folder.exists()
    assert (await api.get("/checkpoints")).json()["checkpoints"] == []
    assert (await api.request("DELETE", url)).status_code == 404
    assert (await api.post("/weights_info", {"tinker_path": path})).status_code == 404
    assert "path" in await save(api, model, 2)


@pytest.mark.parametrize(
    "tail", ["weights", "weights/", "external_weights/a", "x/y", "weights/a/b"]
)
async def test_bad_checkpoint_id_is_refused(api, tail):
    model = await api.model()
    response = await api.request("DELETE", f"/training_runs/{model}/checkpoints/{tail}")
    assert response.status_code in {400, 404}
    assert response.json()["detail"]


async def test_expired_checkpoint_is_not_served_and_swept(virtual, advance):
    api = virtual
    model = await api.model()
    path = (await save(api, model, 1, ttl_seconds=3600))["path"]
    await save(api, model, 2, "stays")
    listed = (await api.get("/checkpoints")).json()["checkpoints"]
    assert [("expires_at" in entry) for entry in listed] == [False, True]
    folder = api.services.config.data_dir / "checkpoints" / model / "weights"
    await advance(3599)
    assert (await api.post("/weights_info", {"tinker_path": path})).status_code == 200
    api.clock.advance(2)
    assert (await api.post("/weights_info", {"tinker_path": path})).status_code == 404
    await settle()
    await api.services.tasks.finished()
    assert [entry.name for entry in folder.iterdir()] == ["stays"]
    listed = (await api.get("/checkpoints")).json()["checkpoints"]
    assert [entry["checkpoint_id"] for entry in listed] == ["weights/stays"]


async def test_checkpoints_outlive_session_and_server(make_config, serve):
    config = make_config()
    async with serve(config) as api:
        session = await api.session()
        model = await trained(api, session)
        path = (await save(api, model, 7))["path"]
        expected = await step(api, model, 8)
        await api.ok(f"/sessions/{session}/finish", {"reason": {"type": "success"}})
    async with serve(config) as api:
        assert (await api.get(f"/training_runs/{model}")).status_code == 200
        loaded = await load(api, await api.session(), 0, path)
        assert await step(api, loaded["model_id"], 1) == expected
        error, _ = await api.failure(await api.ok("/forward_backward", batch_json(model, 9)))
        assert "restarted" in error


async def test_start_clears_what_a_killed_server_left(make_config, serve):
    config = make_config()
    async with serve(config) as api:
        model = await api.model()
        await save(api, model, 1)
    folder = config.data_dir / "checkpoints" / model / "weights"
    (folder / ".staging-half").mkdir()
    (folder / "never-acknowledged").mkdir()
    async with serve(config):
        assert [entry.name for entry in folder.iterdir()] == ["one"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
async def test_saved_adapter_loads_with_peft(api, tiny):
    import torch
    from peft import PeftModel

    session = await api.session()
    model = await trained(api, session)
    await save(api, model, 7)
    folder = api.services.config.data_dir / "checkpoints" / model / "weights" / "one"
    tokens = [5, 6, 7, 8, 9]
    future = await api.ok("/forward_backward", batch_json(model, 8, tokens=tokens))
    ours = (await api.result(future))["loss_fn_outputs"][0]["logprobs"]["data"]
    adapted = PeftModel.from_pretrained(tiny(), folder)
    with torch.no_grad():
        logits = adapted(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    theirs = logits[range(4), tokens[1:]].tolist()
    assert ours == pytest.approx(theirs, abs=1e-4)


async def test_checkpoint_tells_the_adapter_that_is_in_it_not_the_one_that_its_run_began_with(api):
    session = await api.session()
    body = {"session_id": session, "base_model": BASE_MODEL}
    lora = {"rank": 8, "seed": 1, "train_mlp": False}
    future = await api.ok("/create_model", {**body, "model_seq_id": 0, "lora_config": lora})
    large = (await api.result(future))["model_id"]
    path = (await save(api, large, 1))["path"]
    model = await api.model(session, 1, rank=4)
    before = (await save(api, model, 1))["path"]
    loading = {"model_id": model, "seq_id": 2, "path": path, "optimizer": True}
    await api.result(await api.ok("/load_weights", loading))
    after = (await save(api, model, 3, "two"))["path"]
    told = [await api.ok("/weights_info", {"tinker_path": one}) for one in (before, after)]
    assert [(one["lora_rank"], one["train_mlp"]) for one in told] == [(4, True), (8, False)]
    await api.services.tasks.finished()
    assert (await api.get(f"/training_runs/{model}")).json()["lora_rank"] == 8
    made = await load(api, session, 2, after)
    assert (await api.ok("/get_info", {"model_id": made["model_id"]}))["lora_rank"] == 8
