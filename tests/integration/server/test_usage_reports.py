"""Usage as it is asked for: sums, the official API's events, CSV, and who sees whose."""

import csv
import io
from datetime import UTC, datetime

import pytest
from server_support import BASE_MODEL, OTHER_KEY, batch_json, sample_json


async def work(api, key=None, **session):
    """Train four tokens, sample two, save one checkpoint: the session's id."""
    options = {} if key is None else {"key": key}
    body = {"tags": [], "sdk_version": "1", **session}
    session_id = (await api.ok("/create_session", body, **options))["session_id"]
    model = await api.model(session_id, **options)
    body = {"model_id": model, "seq_id": 2, "path": "a"}
    for path, call in (
        ("/forward_backward", batch_json(model, 1)),
        ("/save_weights", body),
    ):
        await api.result(await api.ok(path, call, **options), **options)
    number = {"session_id": session_id, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
    sampler = (await api.ok("/create_sampling_session", number, **options))["sampling_session_id"]
    await api.result(
        await api.ok("/asample", sample_json(sampler, max_tokens=2, stop=[]), **options), **options
    )
    return session_id


async def rows_of(api, query="", **options):
    response = await api.get(f"/usage{query}", **options)
    assert response.status_code == 200, response.text
    return response.json()["rows"]


def this_hour(api):
    now = datetime.fromtimestamp(api.services.clock.now(), UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    return hour.isoformat().replace("+00:00", "Z")


def window(api):
    hour = datetime.fromisoformat(this_hour(api)).timestamp()
    start, end = (datetime.fromtimestamp(hour + d, UTC) for d in (-3600, 7200))
    return {"starting_on": start.isoformat(), "ending_before": end.isoformat()}


async def test_usage_is_summed_by_what_is_asked_for(api):
    sessions = [await work(api), await work(api)]
    (everything,) = await rows_of(api, "?by=")
    assert everything["forward_backward_tokens"] == 8
    assert everything["sampled_tokens"] == 4
    assert everything["checkpoints"] == 2
    assert everything["training_s"] > 0
    assert everything["sampling_s"] > 0
    by_source = {row["source"]: row for row in await rows_of(api, "?by=source,base_model")}
    assert set(by_source) == {
        f"{session}:{kind}:0" for session in sessions for kind in ("train", "sample")
    }
    run = by_source[f"{sessions[0]}:train:0"]
    assert run["base_model"] == BASE_MODEL
    assert (run["forward_backward_tokens"], run["sampled_tokens"]) == (4, 0)
    assert by_source[f"{sessions[0]}:sample:0"]["sampled_tokens"] == 2
    (day,) = await rows_of(api)
    assert (day["key"], day["day"][10:]) == (api.owner, "T00:00:00Z")


async def test_usage_outside_of_the_window_is_left_out(api):
    await work(api)
    query = "?by=&starting_on=2020-01-01T00:00:00Z&ending_before=2020-01-02T00:00:00Z"
    (row,) = await rows_of(api, query)
    assert row["requests"] == 0


async def test_an_administrator_sees_all_accounts_and_others_their_own(api):
    await work(api)
    await work(api, OTHER_KEY)
    mine = {row["account"] for row in await rows_of(api, "?by=account")}
    theirs = {row["account"] for row in await rows_of(api, "?by=account", key=OTHER_KEY)}
    assert (mine, theirs) == ({api.owner, api.other_owner}, {api.other_owner})


async def test_usage_is_there_as_csv(virtual):
    session = await work(virtual)
    response = await virtual.get("/usage?by=hour,session&format=csv")
    assert response.headers["content-type"].startswith("text/csv")
    (row,) = csv.DictReader(io.StringIO(response.text))
    assert (row["session"], row["forward_backward_tokens"]) == (session, "4")
    assert row["hour"] == this_hour(virtual)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("?by=colour", "colour"),
        ("?starting_on=2026-01-01T00:00:00", "starting_on"),
        ("?format=xml", "format"),
        (
            "?starting_on=2026-01-02T00:00:00Z&ending_before=2026-01-01T00:00:00Z",
            "ending_before",
        ),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_name(api, query, word):
    response = await api.get(f"/usage{query}")
    assert response.status_code == 422
    assert word in response.json()["detail"]


async def events_of(api, **options):
    response = await api.get("/billing/usage/events", params=window(api), **options)
    assert response.status_code == 200, response.text
    return response.json()


async def test_billing_events_are_those_of_the_official_api(virtual, advance):
    api = virtual
    await advance(3600 - api.clock.now() % 3600)
    session = await work(api, user_metadata={"who": "me"}, project_id="p")
    await advance(60)
    answer = await events_of(api)
    assert answer["sessions"] == {session: {"user_metadata": {"who": "me"}}}
    found = [event["event_info"] for event in answer["data"]]
    storage = [info for info in found if info["type"] == "storage"]
    assert [info for info in found if info["type"] != "storage"] == [
        {"type": "training", "token_count": 4, "forward_only": False},
        {"type": "sampling_prefill", "cached": False, "token_count": 3},
        {"type": "sampling_sample", "token_count": 2},
        {"type": "checkpoint", "count": 1},
    ]
    assert all(info["gigabyte_hours"] > 0 for info in storage)
    event = answer["data"][0]
    assert event["bucket_start"] == this_hour(api)
    assert (event["session_id"], event["project_id"]) == (session, "p")
    assert (event["user_id"], event["base_model"]) == (api.owner, BASE_MODEL)
    assert "estimated_cost_usd" not in event


async def test_billing_events_are_ones_own(api):
    session = await work(api)
    other = await work(api, OTHER_KEY)
    theirs = await events_of(api, key=OTHER_KEY)
    assert set(theirs["sessions"]) == {other}
    assert set((await events_of(api))["sessions"]) == {session, other}


@pytest.mark.parametrize(
    ("start", "end", "word"),
    [
        ("2026-01-01T00:30:00Z", "2026-01-02T00:00:00Z", "whole"),
        ("2026-01-01T00:00:00Z", "2026-01-16T00:00:00Z", "14 days"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "after"),
        ("2999-01-01T00:00:00Z", "2999-01-02T00:00:00Z", "future"),
    ],
)
async def test_a_window_that_the_official_api_refuses_is_refused(api, start, end, word):
    params = {"starting_on": start, "ending_before": end}
    response = await api.get("/billing/usage/events", params=params)
    assert response.status_code == 422
    assert word in response.json()["detail"]


async def test_storage_ends_with_its_checkpoint(virtual, advance):
    session = await work(virtual)
    now = virtual.clock.now()
    await advance(2 * 3600 - now % 3600)
    run = f"{session}:train:0"
    path = f"/training_runs/{run}/checkpoints/weights/a"
    (item,) = (await virtual.get("/billing/usage/checkpoints/current")).json()["data"]
    size = item["size_bytes"]
    assert item["checkpoint_count"] == 1
    assert item["size_gigabytes"] == pytest.approx(size / 1e9)
    assert (await virtual.request("DELETE", path)).status_code == 200
    assert (await virtual.get("/billing/usage/checkpoints/current")).json()["data"] == []
    await advance(5 * 3600)
    start = now - now % 3600
    params = {
        "starting_on": datetime.fromtimestamp(start, UTC).isoformat(),
        "ending_before": datetime.fromtimestamp(start + 6 * 3600, UTC).isoformat(),
    }
    data = (await virtual.get("/billing/usage/events", params=params)).json()["data"]
    stored = [
        e["event_info"]["gigabyte_hours"] for e in data if e["event_info"]["type"] == "storage"
    ]
    assert sum(stored) == pytest.approx(size / 1e9 * (2 * 3600 - now % 3600) / 3600)


async def test_storage_is_summed_by_project_and_account(api):
    await work(api, project_id="p")
    await work(api)
    await work(api, OTHER_KEY)
    path = "/billing/usage/checkpoints/current"
    data = (await api.get(path)).json()["data"]
    found = {(item["org_user_urn"], item["project_id"]) for item in data}
    assert found == {(api.owner, "p"), (api.owner, "default"), (api.other_owner, "default")}
    (one,) = (await api.get(f"{path}?project_id=p")).json()["data"]
    assert one["project_id"] == "p"
    (own,) = (await api.get(path, key=OTHER_KEY)).json()["data"]
    assert own["org_user_urn"] == api.other_owner
