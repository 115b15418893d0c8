"""Finding sessions and putting them into projects, as the official search means it."""

import pytest
from server_support import OTHER_KEY


async def begin(api, **fields):
    key = fields.pop("key", None)
    options = {} if key is None else {"key": key}
    return (await api.ok("/create_session", {"tags": [], "sdk_version": "1", **fields}, **options))[
        "session_id"
    ]


async def search(api, **request):
    options = {"key": request.pop("key")} if "key" in request else {}
    return await api.ok("/sessions/search", request, **options)


async def found(api, **request):
    return {one["session_id"] for one in (await search(api, **request))["sessions"]}


async def finish(api, session, kind="success", detail=None):
    reason = {"reason": {"type": kind}, "detail": detail}
    await api.ok(f"/sessions/{session}/finish", reason)
    await api.services.tasks.finished()


async def test_a_session_is_told_with_what_its_client_said_and_what_it_holds(api):
    session = await begin(
        api, display_name="Night run", user_metadata={"a": "b"}, project_id="poems"
    )
    model = await api.model(session)
    body = {"model_id": model, "seq_id": 1, "path": "x"}
    await api.result(await api.ok("/save_weights", body))
    answer = await search(api)
    (one,) = answer["sessions"]
    assert "next_cursor" not in answer
    assert one.pop("created_at").endswith("Z")
    assert one.pop("checkpoint_storage_bytes") > 0
    assert one == {
        "session_id": session,
        "owner": api.owner,
        "project_id": "poems",
        "status": {"type": "active"},
        "checkpoints_count": 1,
        "display_name": "Night run",
        "user_metadata": {"a": "b"},
    }


async def test_every_pair_of_metadata_must_be_there(api):
    pairs = {"a": "1", 'q"uote': "x'y", "b": "2"}
    session = await begin(api, user_metadata=pairs)
    await begin(api, user_metadata={"a": "2"})
    await begin(api)
    assert await found(api, user_metadata={"a": "1"}) == {session}
    assert await found(api, user_metadata=pairs) == {session}
    assert await found(api, user_metadata={"a": "1", "b": "3"}) == set()
    assert len(await found(api, user_metadata={})) == 3


async def test_every_word_must_be_in_the_name_in_any_letter_case(api):
    session = await begin(api, display_name="Über the 50% Lazy_Dog")
    await begin(api, display_name="over the lazy dog")
    await begin(api)
    for words in ("über", "LAZY_dog ÜBER", "50%"):
        assert await found(api, display_name=words) == {session}, words
    assert await found(api, display_name="über cat") == set()


async def test_an_id_or_a_name_is_enough_of_the_two(api):
    first, second = await begin(api, display_name="one"), await begin(api, display_name="two")
    assert await found(api, session_id=first) == {first}
    assert await found(api, session_id=first, display_name="two") == {first, second}


async def test_sessions_are_found_by_project_also_the_one_of_those_that_name_none(api):
    first, second = await begin(api, project_id="p"), await begin(api)
    assert await found(api, project_ids=["p"]) == {first}
    assert await found(api, project_ids=["default"]) == {second}
    assert await found(api, project_ids=["p", "default"]) == {first, second}
    runs = [await api.model(first), await api.model(second)]
    for project, run in zip(("p", "default"), runs, strict=True):
        page = (await api.get(f"/training_runs?project_id={project}")).json()
        assert [one["training_run_id"] for one in page["training_runs"]] == [run]


async def test_sessions_are_found_by_how_they_ended(virtual, advance):
    done, failed = await begin(virtual), await begin(virtual)
    await finish(virtual, done)
    await finish(virtual, failed, "errored", "it hurt")
    silent = await begin(virtual)
    await advance(200)
    await virtual.services.tasks.finished()
    live = await begin(virtual)
    by_type = {
        "active": {live},
        "cancelled": {silent},
        "client_finished": {done, failed},
        "failed": set(),
    }
    for kind, sessions in by_type.items():
        assert await found(virtual, statuses=[{"type": kind}]) == sessions, kind
    errored = {"type": "client_finished", "reasons": ["errored"]}
    (one,) = (await search(virtual, statuses=[errored]))["sessions"]
    assert one["session_id"] == failed
    assert one["status"] == {
        "type": "client_finished",
        "reason": {"type": "errored"},
        "detail": "it hurt",
    }
    both = [{"type": "active"}, errored]
    assert await found(virtual, statuses=both) == {live, failed}
    (one,) = (await search(virtual, statuses=[{"type": "cancelled"}]))["sessions"]
    assert "silent" in one["status"]["detail"]


async def test_pages_follow_one_another_newest_first_also_within_one_moment(virtual):
    sessions = {await begin(virtual) for _ in range(3)}
    virtual.clock.advance(1 / 3)
    later = {await begin(virtual) for _ in range(2)}
    cursor, seen = None, []
    while True:
        request = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
        page = await search(virtual, **request)
        seen += [one["session_id"] for one in page["sessions"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert len(seen) == 5
    assert set(seen[:2]) == later
    assert set(seen[2:]) == sessions


async def test_a_key_finds_its_own_account_alone(api):
    mine, theirs = await begin(api), await begin(api, key=OTHER_KEY)
    assert await found(api, owner={"type": "accessible"}) == {mine}
    assert await found(api, key=OTHER_KEY) == {theirs}
    users = {"type": "user", "owner_urns": [api.owner, api.other_owner]}
    assert await found(api, owner=users) == {mine}
    users = {"type": "user", "owner_urns": [api.other_owner]}
    assert await found(api, owner=users) == set()
    assert await found(api, session_id=theirs) == set()


@pytest.mark.parametrize(
    ("request_body", "word"),
    [
        ({"limit": 201}, "limit"),
        ({"statuses": []}, "statuses"),
        ({"statuses": [{"type": "asleep"}]}, "statuses"),
        ({"owner": {"type": "user", "owner_urns": []}}, "owner"),
        ({"colour": "blue"}, "colour"),
        ({"cursor": {"last_created_at": "2026-01-01", "last_session_id": "s"}}, "cursor"),
    ],
)
async def test_a_search_that_makes_no_sense_is_refused_by_name(api, request_body, word):
    response = await api.post("/sessions/search", request_body)
    assert response.status_code == 422
    assert word in response.json()["detail"]


async def test_a_session_moves_into_another_project(api):
    session = await begin(api, project_id="old")
    path = f"/sessions/{session}/project"
    assert (await api.request("PUT", path, {"project_id": "new"})).json() == {}
    assert await found(api, project_ids=["new"]) == {session}
    assert await found(api, project_ids=["old"]) == set()
    refused = await api.request("PUT", path, {"project_id": "x"}, key=OTHER_KEY)
    assert refused.status_code == 404
    for name in ("", "x" * 201, "a\nb"):
        refused = await api.request("PUT", path, {"project_id": name})
        assert refused.status_code == 422
    assert await found(api, project_ids=["new"]) == {session}
