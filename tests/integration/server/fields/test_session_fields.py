"""Fields of requests about clients, sessions and futures: each is heeded, or refused by name."""

import re

import pytest
from field_support import covers, refused
from server_support import BASE_MODEL, batch_json, sample_json

from tinkex.wire.endpoints import ALL


async def ended(api, session):
    """Wait until a session's end is written, which happens in the background: its row."""
    row = {"reason": None}
    while row["reason"] is None:
        row = await api.services.store.session(api.owner, session)
    return row


@covers("CreateSessionRequest.tags", "CreateSessionRequest.user_metadata")
@covers("CreateSessionRequest.sdk_version", "CreateSessionRequest.project_id")
@covers("CreateSessionRequest.display_name")
async def test_session_is_kept_as_its_client_describes_it(api):
    body = {
        "tags": ["a"],
        "user_metadata": {"b": "c"},
        "sdk_version": "1.2",
        "project_id": "p",
        "display_name": "d",
    }
    session = (await api.ok("/create_session", body))["session_id"]
    row = await api.services.store.session(api.owner, session)
    assert {name: row[name] for name in body} == body
    shown = (await api.get(f"/sessions/{session}")).json()
    assert (shown["user_metadata"], shown["display_name"]) == ({"b": "c"}, "d")
    model = await api.model(session)
    runs = (await api.get("/training_runs?project_id=p")).json()["training_runs"]
    assert [run["training_run_id"] for run in runs] == [model]


@covers("SessionHeartbeatRequest.session_id", "body.FinishSession.reason")
@covers("body.FinishSession.detail")
async def test_life_of_a_session(api):
    session = await api.session()
    await api.ok("/session_heartbeat", {"session_id": session})
    path = f"/sessions/{session}/finish"
    await refused(api, path, {"reason": {"type": "bored"}, "detail": None}, "reason")
    await api.ok(path, {"reason": {"type": "errored"}, "detail": "why"})
    row = await ended(api, session)
    assert (row["reason"], row["detail"]) == ("errored", "why")
    await refused(api, "/session_heartbeat", {"session_id": session}, session, status=410)
    await refused(api, "/session_heartbeat", {"session_id": "none"}, "none", status=410)


@covers("ClientConfigRequest.sdk_version")
async def test_version_of_a_client(api):
    new = await api.ok("/client/config", {"sdk_version": "0.38.0"})
    old = await api.ok("/client/config", {"sdk_version": "0.22.0"})
    assert new["sample_use_retrieve_futures"]
    assert not old["sample_use_retrieve_futures"]


async def test_bodies_that_nobody_reads_are_described_so(api):
    """Telemetry is dropped whole, and a client that cannot get its settings cannot start."""
    document = (await api.client.get("/openapi.json")).json()
    unread = {
        path
        for path, item in document["paths"].items()
        if not item.get("post", {}).get("requestBody", {}).get("required", True)
    }
    prefix = "/api/v1"
    assert unread == {
        f"{prefix}/telemetry",
        f"{prefix}/client/config",
        f"{prefix}/client/dynamic_config",
    }


@covers("FutureRetrieveRequest.request_id", "FutureRetrieveRequest.allow_metadata_only")
async def test_results(api):
    """A result comes whole whether or not its size may come first."""
    future = await api.ok("/forward_backward", batch_json(await api.model(), 1))
    bodies = [{**future, "allow_metadata_only": allowed} for allowed in (True, False)]
    answers = [await api.ok("/retrieve_future", body) for body in bodies]
    assert "metrics" in answers[0]
    assert answers[0] == answers[1]
    await refused(api, "/retrieve_future", {"request_id": "none"}, "none", status=404)
    wrong = {**future, "allow_metadata_only": "yes"}
    await refused(api, "/retrieve_future", wrong, "allow_metadata_only")


@covers("FuturesRetrieveRequest.target", "FuturesRetrieveRequest.prev_cursor")
@covers("FuturesRetrieveRequest.timeout", "FuturesRetrieveRequest.retrieved_request_ids")
@covers("SamplingSessionFuturesTarget.sampling_session_id", "SamplingSessionFuturesTarget.type")
@covers("SamplingSessionFuturesTarget.cloned_sampler_id")
async def test_results_in_batches(api):
    sampler = await api.sampler()
    mine = await api.ok("/asample", sample_json(sampler, 0))
    clones = await api.ok("/asample", sample_json(sampler, 5 * 10**9))
    for future in (mine, clones):
        await api.result(future)
    target = {"type": "sampling_session", "sampling_session_id": sampler}
    ask = {"prev_cursor": 0, "timeout": 0.0, "retrieved_request_ids": []}
    path = "/retrieve_futures"

    async def done(target, **changes):
        answer = await api.ok(path, {**ask, "target": target, **changes})
        return [one["request_id"] for one in answer["completions"]], answer["cursor"]

    found, cursor = await done(target)
    assert found == [mine["request_id"]]
    assert (await done({**target, "cloned_sampler_id": 5}))[0] == [clones["request_id"]]
    assert (await done(target, prev_cursor=cursor))[0] == []
    got = [mine["request_id"]]
    await done(target, prev_cursor=cursor, retrieved_request_ids=got)
    assert (await api.post("/retrieve_future", mine | {})).status_code in {410, 422}
    await refused(api, "/retrieve_future", {"request_id": got[0]}, got[0], status=410)
    other = {**target, "sampling_session_id": "none"}
    await refused(api, path, {**ask, "target": other}, "none", status=404)
    await refused(api, path, {**ask, "target": {**target, "type": "run"}}, "type")
    await refused(api, path, {**ask, "target": target, "timeout": "long"}, "timeout")


REQUESTS = [
    endpoint
    for endpoint in ALL
    if hasattr(endpoint.request, "model_fields") and endpoint.method == "POST"
]


@covers("CreateCustomLossRequest.type", "CreateModelRequest.type", "GetInfoRequest.type")
@covers("CreateSamplingSessionRequest.type", "CreateSessionRequest.type", "SampleRequest.type")
@covers("JoinSamplingSessionRequest.type", "LoadWeightsRequest.type", "OptimStepRequest.type")
@covers("SaveWeightsExternalRequest.type", "SaveWeightsForSamplerRequest.type")
@covers("SaveWeightsRequest.type", "SessionHeartbeatRequest.type", "UnloadModelRequest.type")
@pytest.mark.parametrize("endpoint", REQUESTS, ids=lambda one: one.name)
async def test_wrong_type_and_unknown_fields_are_refused_by_name(api, endpoint):
    path = endpoint.path.removeprefix("/api/v1").replace("{checkpoint_id}", "weights/one")
    path = re.sub(r"\{\w+\}", "s", path)
    if path.startswith(("/client", "/telemetry")):
        assert (await api.post(path, {"type": "nonsense", "colour": 1})).status_code == 200
        return
    response = await api.post(path, {"type": "nonsense", "colour": 1})
    if response.status_code == 404 and "has no POST" in response.text:
        return  # the whole endpoint is refused by name
    assert response.status_code == 422, response.text
    assert "colour" in response.json()["detail"] or "more" in response.json()["detail"]
    if "type" in endpoint.request.model_fields:
        field = endpoint.request.model_fields["type"]
        only = endpoint.request.model_construct(type="nonsense").model_dump(exclude_unset=True)
        assert only == {"type": "nonsense"}
        faults = response.json()["detail"]
        assert "type" in faults or "more" in faults, field


@covers("GetBillingUsageRequest.starting_on", "GetBillingUsageRequest.ending_before")
@covers("GetCurrentCheckpointStorageUsageRequest.project_id")
async def test_usage(api):
    path = "/billing/usage/events"
    hours = {"starting_on": "2026-01-01T00:00:00Z", "ending_before": "2026-01-02T00:00:00Z"}
    assert (await api.get(path, params=hours)).json()["data"] == []
    for name in hours:
        response = await api.get(path, params={**hours, name: "noon"})
        assert response.status_code == 422
        assert name in response.json()["detail"]
    body = {"model_id": await api.model(), "seq_id": 1, "path": "a"}
    await api.result(await api.ok("/save_weights", body))
    path = "/billing/usage/checkpoints/current"
    assert len((await api.get(path)).json()["data"]) == 1
    assert (await api.get(path, params={"project_id": "none"})).json()["data"] == []


SEARCH = "/sessions/search"


@covers("SessionSearchRequest.session_id", "SessionSearchRequest.project_ids")
@covers("SessionSearchRequest.user_metadata", "SessionSearchRequest.display_name")
@covers("SessionSearchRequest.limit", "SessionSearchRequest.cursor")
@covers("SessionSearchCursor.last_created_at", "SessionSearchCursor.last_session_id")
async def test_search(api):
    found = []
    for number in range(2):
        body = {
            "tags": [],
            "sdk_version": "1",
            "project_id": f"p{number}",
            "display_name": f"name {number}",
            "user_metadata": {"n": str(number)},
        }
        found.append((await api.ok("/create_session", body))["session_id"])

    async def search(**fields):
        return await api.ok(SEARCH, fields)

    async def ids(**fields):
        return [one["session_id"] for one in (await search(**fields))["sessions"]]

    assert set(await ids()) == set(found)
    for fields in (
        {"session_id": found[0]},
        {"project_ids": ["p0"]},
        {"user_metadata": {"n": "0"}},
        {"display_name": "0 NAME"},
    ):
        assert await ids(**fields) == found[:1], fields
    first = await search(limit=1)
    second = await search(limit=1, cursor=first["next_cursor"])
    assert {page["sessions"][0]["session_id"] for page in (first, second)} == set(found)
    for name in first["next_cursor"]:
        cursor = {**first["next_cursor"], name: 3}
        await refused(api, SEARCH, {"cursor": cursor}, name)


@covers("SessionSearchRequest.owner", "OwnSearchOwner.type", "AccessibleSearchOwner.type")
@covers("UserSearchOwner.type", "UserSearchOwner.owner_urns", "SessionSearchRequest.statuses")
@covers("ActiveSessionStatusQuery.type", "CancelledSessionStatusQuery.type")
@covers("FailedSessionStatusQuery.type", "ClientFinishedSessionStatusQuery.type")
@covers("ClientFinishedSessionStatusQuery.reasons")
async def test_search_by_owner_and_status(api):
    active, finished = await api.session(), await api.session()
    await api.ok(f"/sessions/{finished}/finish", {"reason": {"type": "errored"}, "detail": None})
    await ended(api, finished)

    async def ids(**fields):
        return {one["session_id"] for one in (await api.ok(SEARCH, fields))["sessions"]}

    assert await ids(owner={"type": "own"}) == {active, finished}
    assert await ids(owner={"type": "accessible"}) == {active, finished}
    assert await ids(owner={"type": "user", "owner_urns": ["none"]}) == set()
    await refused(api, SEARCH, {"owner": {"type": "everybody"}}, "owner")
    assert await ids(statuses=[{"type": "active"}]) == {active}
    assert await ids(statuses=[{"type": "cancelled"}]) == set()
    assert await ids(statuses=[{"type": "failed"}]) == set()
    assert await ids(statuses=[{"type": "client_finished"}]) == {finished}
    for reason, expected in (("errored", {finished}), ("success", set())):
        assert await ids(statuses=[{"type": "client_finished", "reasons": [reason]}]) == expected
    await refused(api, SEARCH, {"statuses": [{"type": "asleep"}]}, "statuses")


async def test_model_of_the_server_is_the_one_of_these_tests(api):
    models = (await api.get("/get_server_capabilities")).json()["supported_models"]
    assert BASE_MODEL in {model["model_name"] for model in models}


async def test_notes_that_are_no_text_come_back_as_json_where_the_wire_has_text(api):
    """They used to be taken, and every list that they were in was a 500 from then on."""
    notes = {"rate": 0.1, "tags": ["a"], "name": "b"}
    body = {"tags": [], "sdk_version": "1", "user_metadata": notes}
    session = (await api.ok("/create_session", body))["session_id"]
    new = {"base_model": BASE_MODEL, "lora_config": {"rank": 2}, "user_metadata": notes}
    body = {"session_id": session, "model_seq_id": 0, **new}
    model = (await api.result(await api.ok("/create_model", body)))["model_id"]
    texts = {"rate": "0.1", "tags": '["a"]', "name": "b"}
    assert (await api.get(f"/sessions/{session}")).json()["user_metadata"] == notes
    assert (await api.get(f"/training_runs/{model}")).json()["user_metadata"] == texts
    (found,) = (await api.ok(SEARCH, {}))["sessions"]
    assert found["user_metadata"] == texts
