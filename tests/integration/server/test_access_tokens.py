"""Tokens that let somebody else read one checkpoint: for a while, and nothing besides."""

import sqlite3
from contextlib import closing

import pytest
from server_support import OTHER_KEY, batch_json, settle

OTHER = {"key": OTHER_KEY}


async def saved(api, name="one", number=1):
    model = await api.model()
    body = {"model_id": model, "seq_id": number, "path": name}
    return (await api.result(await api.ok("/save_weights", body)))["path"]


def tokens(path):
    run, rest = path.removeprefix("tinker://").split("/", 1)
    return f"/training_runs/{run}/checkpoints/{rest}/access_tokens"


async def load(api, path, token, model=None, **kwargs):
    where = {"session_id": await api.session(**kwargs), "model_seq_id": 0}
    if model is not None:
        where = {"model_id": model, "seq_id": 1}
    body = {**where, "path": path, "optimizer": True, "weights_access_token": token}
    return await api.result(await api.ok("/load_weights", body, **kwargs), **kwargs)


async def copy(api, path, token):
    headers = {"X-Tinker-Weights-Access-Token": token}
    return await api.post("/copy_weights", {"source_path": path}, headers=headers, **OTHER)


async def test_holder_of_a_token_loads_and_copies_that_checkpoint_alone(api):
    path, other = await saved(api), await saved(api, "two")
    made = await api.ok(tokens(path), {"ttl_seconds": 3600})
    token = made["weights_access_token"]
    assert made["tinker_path"] == path
    assert "model_id" in await load(api, path, token, **OTHER)
    mine = await api.model(**OTHER)
    assert "model_id" in await load(api, path, token, model=mine, **OTHER)
    copied = await copy(api, path, token)
    assert copied.status_code == 200
    assert "model_id" in await load(api, copied.json()["tinker_path"], None, **OTHER)

    assert "weights_access_token" in (await load(api, other, token, **OTHER))["error"]
    assert (await copy(api, other, token)).status_code == 400
    assert (await api.post("/weights_info", {"tinker_path": path}, **OTHER)).status_code == 404
    run = f"/training_runs/{path.removeprefix('tinker://').partition('/')[0]}"
    deleted = await api.request("DELETE", f"{run}/checkpoints/weights/one", **OTHER)
    assert deleted.status_code == 404
    assert (await api.get(tokens(path), **OTHER)).status_code == 404


@pytest.mark.parametrize("token", ["", "wat-x", "sha256:x", "é", "x" * 5000])
async def test_wrong_token_opens_nothing(api, token):
    path = await saved(api)
    made = await api.ok(tokens(path), {})
    answer = await load(api, path, token, **OTHER)
    assert answer["category"] == "user"
    assert "weights_access_token" in answer["error"]
    assert made["weights_access_token"] not in answer["error"]


async def test_owner_may_send_a_token_that_is_not_needed(api):
    path = await saved(api)
    assert "model_id" in await load(api, path, "anything")


async def test_token_ends_with_its_time(virtual):
    api = virtual
    path = await saved(api)
    token = (await api.ok(tokens(path), {"ttl_seconds": 60}))["weights_access_token"]
    api.clock.advance(59)
    assert (await copy(api, path, token)).status_code == 200
    api.clock.advance(2)
    await settle()
    assert (await copy(api, path, token)).status_code == 400
    assert (await api.get(tokens(path))).json() == {"access_tokens": []}


async def test_token_that_is_taken_back_opens_nothing(api):
    path = await saved(api)
    one, two = [await api.ok(tokens(path), {}) for _ in range(2)]
    listed = (await api.get(tokens(path))).json()["access_tokens"]
    assert {item["token_id"] for item in listed} == {one["token_id"], two["token_id"]}
    assert "weights_access_token" not in listed[0]
    gone = f"{tokens(path)}/{one['token_id']}"
    assert (await api.request("DELETE", gone, **OTHER)).status_code == 404
    assert (await api.request("DELETE", gone)).status_code == 200
    assert (await api.request("DELETE", gone)).status_code == 404
    assert (await copy(api, path, one["weights_access_token"])).status_code == 400
    assert (await copy(api, path, two["weights_access_token"])).status_code == 200


async def test_token_ends_with_its_checkpoint_and_not_with_the_next_of_that_name(api):
    path = await saved(api)
    token = (await api.ok(tokens(path), {}))["weights_access_token"]
    run = path.removeprefix("tinker://").partition("/")[0]
    await api.request("DELETE", f"/training_runs/{run}/checkpoints/weights/one")
    await api.result(await api.ok("/save_weights", {"model_id": run, "seq_id": 2, "path": "one"}))
    assert (await copy(api, path, token)).status_code == 400


@pytest.mark.parametrize("ttl", [0, 59, 366 * 86_400 + 1, "soon", None])
async def test_bad_time_is_refused(api, ttl):
    response = await api.post(tokens(await saved(api)), {"ttl_seconds": ttl})
    assert response.status_code in {400, 422}
    assert "ttl_seconds" in response.text


async def test_no_more_than_a_hundred_tokens(api):
    path = await saved(api)
    for _ in range(100):
        await api.ok(tokens(path), {})
    response = await api.post(tokens(path), {})
    assert response.status_code == 400
    assert "100" in response.json()["detail"]


async def test_token_is_kept_nowhere(api):
    path = await saved(api)
    token = (await api.ok(tokens(path), {}))["weights_access_token"]
    session = await api.session(**OTHER)
    body = {"session_id": session, "model_seq_id": 0, "path": path, "optimizer": True}
    future = await api.ok("/load_weights", {**body, "weights_access_token": token}, **OTHER)
    assert "model_id" in await api.result(future, **OTHER)
    model = f"{session}:train:0"
    await api.result(await api.ok("/forward_backward", batch_json(model, 1), **OTHER), **OTHER)
    database = api.services.config.data_dir / "tinkex.sqlite3"
    with closing(sqlite3.connect(database)) as connection:
        kept = "\n".join(connection.iterdump())
        bodies = connection.execute("SELECT body FROM journal WHERE body IS NOT NULL").fetchall()
    assert token not in kept
    assert not any(token.encode() in body for (body,) in bodies)
    assert any(path.encode() in body for (body,) in bodies)
