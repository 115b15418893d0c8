"""What is done with checkpoints, projects, accounts and keys is written down, with who did it."""

import pytest
from server_support import OTHER_KEY


async def log(api, query="", **options):
    response = await api.get(f"/audit{query}", **options)
    assert response.status_code == 200, response.text
    return response.json()["entries"]


async def saved(api, **options):
    session = await api.session(**options)
    model = await api.model(session, **options)
    body = {"model_id": model, "seq_id": 1, "path": "a"}
    path = (await api.result(await api.ok("/save_weights", body, **options), **options))["path"]
    return session, model, path


async def test_the_life_of_a_checkpoint_is_told(api):
    session, model, path = await saved(api)
    place = f"/training_runs/{model}/checkpoints/weights/a"
    assert (await api.post(f"{place}/publish")).status_code == 200
    assert (await api.request("DELETE", f"{place}/publish")).status_code == 200
    assert (await api.request("PUT", f"{place}/ttl", {"ttl_seconds": 3600})).status_code == 200
    load = {"session_id": session, "model_seq_id": 9, "path": path, "optimizer": True}
    await api.result(await api.ok("/load_weights", load))
    await api.sampler(session, model_path=path)
    copy = (await api.ok("/copy_weights", {"source_path": path}))["tinker_path"]
    assert (await api.request("DELETE", place)).status_code == 200
    entries = await log(api)
    assert [(entry["event"], entry["tinker_path"], entry.get("purpose")) for entry in entries] == [
        ("checkpoint_create", path, None),
        ("checkpoint_publish", path, None),
        ("checkpoint_unpublish", path, None),
        ("checkpoint_ttl_set", path, None),
        ("checkpoint_read", path, "train"),
        ("checkpoint_read", path, "sample"),
        ("checkpoint_read", path, "copy"),
        ("checkpoint_create", copy, None),
        ("checkpoint_delete", path, None),
    ]
    first = entries[0]
    assert first["event_details"]["key_id"] == api.owner
    assert first["model_id"] == model
    assert [e["timestamp"] for e in entries] == sorted(e["timestamp"] for e in entries)


async def test_a_download_is_told(api):
    model = await api.model()
    body = {"model_id": model, "seq_id": 1, "path": "a"}
    await api.result(await api.ok("/save_weights_external", body))
    urls = f"/training_runs/{model}/checkpoints/external_weights/a/external_weights_urls"
    assert (await api.get(urls)).status_code == 200
    assert [(e["event"], e.get("purpose")) for e in await log(api)] == [
        ("checkpoint_create", None),
        ("checkpoint_read", "download"),
    ]


async def test_a_sample_from_a_checkpoint_without_a_session_is_told(api):
    session = await api.session()
    model = await api.model(session)
    body = {"model_id": model, "seq_id": 1, "path": "a"}
    future = await api.ok("/save_weights_for_sampler", body)
    path = (await api.result(future))["path"]
    request = {
        "num_samples": 1,
        "prompt": {"chunks": [{"tokens": [5], "type": "encoded_text"}]},
        "sampling_params": {"max_tokens": 1},
        "model_path": path,
    }
    await api.result(await api.ok("/asample", request))
    assert [(e["event"], e.get("purpose")) for e in await log(api)][1:] == [
        ("checkpoint_read", "sample")
    ]


async def test_the_end_of_a_checkpoint_by_itself_is_the_servers_doing(virtual, advance):
    model = await virtual.model()
    body = {"model_id": model, "seq_id": 1, "path": "a", "ttl_seconds": 3600}
    await virtual.result(await virtual.ok("/save_weights", body))
    await advance(3700)
    await virtual.services.tasks.finished()
    last = (await log(virtual))[-1]
    assert last["event"] == "checkpoint_expire"
    assert last["event_details"]["key_id"] is None


async def test_projects_accounts_and_keys_are_told_without_secrets(api):
    session = await api.session()
    await api.request("PUT", f"/sessions/{session}/project", {"project_id": "p"})
    account = await api.ok(
        "/accounts", {"name": "Ada", "email": "ada@example.org", "password": "a long password"}
    )
    account_id = account["account_id"]
    made = await api.ok(f"/accounts/{account_id}/keys", {"name": "laptop"})
    await api.request("PATCH", f"/accounts/{account_id}", {"disabled": True})
    await api.request("DELETE", f"/accounts/{account_id}/keys/{made['key_id']}")
    entries = await log(api)
    assert [entry["event"] for entry in entries] == [
        "project_session_assign",
        "account_create",
        "key_create",
        "account_change",
        "key_revoke",
    ]
    assert entries[0]["event_details"]["previous_project_id"] == "default"
    assert entries[2]["event_details"]["key"] == made["key_id"]
    text = str(entries)
    assert made["key"] not in text
    assert "a long password" not in text


@pytest.mark.parametrize(
    ("kind", "events"),
    [
        ("checkpoints", ["checkpoint_create"]),
        ("projects", ["project_session_assign"]),
        ("organizations", ["key_create"]),
        ("teams", []),
        ("all", ["checkpoint_create", "project_session_assign", "key_create"]),
    ],
)
async def test_one_kind_of_events_is_told_alone(api, kind, events):
    session, _, _ = await saved(api)
    await api.request("PUT", f"/sessions/{session}/project", {"project_id": "p"})
    await api.ok("/keys", {"name": "x"})
    assert [e["event"] for e in await log(api, f"?event_type={kind}")] == events


async def test_a_day_is_from_midnight_to_midnight_in_utc(virtual, advance):
    await advance(86_400 - virtual.clock.now() % 86_400 - 10)
    await saved(virtual)
    await advance(20)
    assert await log(virtual) == []
    yesterday = virtual.clock.now() - 86_400
    from datetime import UTC, datetime

    day = datetime.fromtimestamp(yesterday, UTC).date().isoformat()
    assert [e["event"] for e in await log(virtual, f"?day={day}")] == ["checkpoint_create"]
    assert (await virtual.get("/audit?day=yesterday")).status_code == 422


async def test_an_administrator_sees_everybodys_doings_and_others_their_own(api):
    await saved(api)
    await saved(api, key=OTHER_KEY)
    mine = [e["event_details"]["account"] for e in await log(api)]
    theirs = [e["event_details"]["account"] for e in await log(api, key=OTHER_KEY)]
    assert (mine, theirs) == ([api.owner, api.other_owner], [api.other_owner])
