"""Questions about the records that only a fuzzer would ask: answered or refused, never a 5xx."""

import pytest

ENDS_OF_TIME = ("0001-01-01T00:00:00Z", "9999-12-31T23:00:00Z", "0001-01-01T00:00:00+14:00")


@pytest.mark.parametrize("moment", ENDS_OF_TIME)
async def test_the_ends_of_time_are_no_fault(api, moment):
    session = await api.session()
    params = [
        ("/usage", {"starting_on": moment}),
        ("/usage", {"ending_before": moment}),
        ("/billing/usage/events", {"starting_on": moment, "ending_before": ENDS_OF_TIME[1]}),
        ("/billing/usage/events", {"starting_on": ENDS_OF_TIME[0], "ending_before": moment}),
        ("/audit", {"day": moment[:10]}),
        ("/training_runs/none/metrics", {"cursor": 2**63 - 1, "limit": 20_000}),
    ]
    for path, query in params:
        response = await api.get(path, params=query)
        assert response.status_code < 500, (path, query, response.text)
    cursor = {"last_created_at": moment, "last_session_id": session}
    response = await api.post("/sessions/search", {"cursor": cursor})
    assert response.status_code < 500, response.text


@pytest.mark.parametrize(
    "text", ["\x00", "'; DROP TABLE sessions --", "%", "_", "\\", "\U0001f600"]
)
async def test_strange_texts_find_nothing_and_break_nothing(api, text):
    session = await api.session()
    for request in (
        {"session_id": text},
        {"display_name": text},
        {"project_ids": [text]},
        {"user_metadata": {text: text}},
        {"owner": {"type": "user", "owner_urns": [text]}},
    ):
        answer = await api.ok("/sessions/search", request)
        assert answer["sessions"] == [], request
    response = await api.get("/billing/usage/checkpoints/current", params={"project_id": text})
    assert response.json()["data"] == []
    assert len((await api.ok("/sessions/search", {}))["sessions"]) == 1
    assert (await api.get(f"/sessions/{session}")).status_code == 200


@pytest.mark.parametrize("project_id", ["", "x" * 201, "a\x00b"])
async def test_a_name_that_is_no_project_is_refused_wherever_it_comes(api, project_id):
    body = {"tags": [], "sdk_version": "1", "project_id": project_id}
    response = await api.post("/create_session", body)
    assert response.status_code == 422
    assert "project_id" in response.json()["detail"]
    body = {"source_path": "tinker://r/weights/a", "destination_project_id": project_id}
    response = await api.post("/copy_weights", body)
    assert response.status_code == 422
    assert "project_id" in response.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/audit?day=0", "/usage?starting_on=0.5", "/usage?ending_before=-1"]
)
async def test_a_number_is_no_date(api, path):
    """Found by schemathesis: it was counted from 1970."""
    response = await api.get(path)
    assert response.status_code in {400, 422}
    assert "not as a number" in response.json()["detail"]


async def test_a_number_is_no_boolean(api):
    response = await api.request("PATCH", f"/accounts/{api.owner}", {"disabled": 0})
    assert response.status_code == 422
    assert "disabled" in response.json()["detail"]
