"""The query parameters of lists: each has its effect, or is refused by name."""

import pytest


async def test_runs_of_one_project_are_listed_alone(api):
    runs = {}
    for project in ("a", "b"):
        body = {"tags": [], "sdk_version": "1", "project_id": project}
        session = (await api.ok("/create_session", body))["session_id"]
        runs[project] = await api.model(session)
    for project in ("a", "b"):
        page = (await api.get(f"/training_runs?project_id={project}")).json()
        assert [run["training_run_id"] for run in page["training_runs"]] == [runs[project]]
        assert page["cursor"]["total_count"] == 1
    assert (await api.get("/training_runs?project_id=c")).json()["training_runs"] == []
    assert (await api.get("/training_runs")).json()["cursor"]["total_count"] == 2


async def test_accessible_is_what_the_key_owns(api):
    session = await api.session()
    model = await api.model(session)
    for path in ("/training_runs", f"/training_runs/{model}", "/sessions", f"/sessions/{session}"):
        owned = (await api.get(f"{path}?access_scope=owned")).json()
        assert (await api.get(f"{path}?access_scope=accessible")).json() == owned
        refused = await api.get(f"{path}?access_scope=everything")
        assert refused.status_code == 422
        assert "access_scope" in refused.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/healthz", "/checkpoints", "/training_runs", "/sessions", "/get_server_capabilities"]
)
async def test_unknown_query_parameter_is_refused_by_name(api, path):
    response = await api.get(f"{path}?colour=blue")
    assert response.status_code == 422
    assert "'colour'" in response.json()["detail"]


async def test_wrong_method_is_answered_with_every_right_one(api):
    path = "/training_runs/run/checkpoints/weights/a/publish"
    response = await api.request("OPTIONS", path)
    assert response.status_code == 405
    assert response.headers["allow"] == "DELETE, POST"
    assert "DELETE, POST" in response.json()["detail"]
