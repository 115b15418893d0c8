"""Accounts and keys through the API: what each may do, and what it may not any more."""

import re

import pytest
from server_support import BASE_MODEL, KEY, OTHER_KEY, batch_json, sample_json

from tinkex.server.accounts.scopes import NEEDED
from tinkex.wire import endpoints


async def refused(response, status, *words):
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    assert all(word in detail for word in words), detail
    return detail


async def test_key_that_was_made_works_and_is_shown_once(api, make_key):
    key, made = await make_key()
    assert key.startswith("tml-")
    assert made["prefix"] == key[:12]
    assert await api.session(key=key)
    listed = (await api.get("/keys", key=key)).text
    assert made["key_id"] in listed
    assert key not in listed
    assert key not in (await api.get("/accounts")).text


async def test_keys_of_one_account_share_what_is_the_accounts(api, make_key):
    key, made = await make_key()
    second, _ = await make_key(made["account_id"])
    session = await api.session(key=key)
    assert (await api.get(f"/sessions/{session}", key=second)).status_code == 200
    assert (await api.get(f"/sessions/{session}")).status_code == 404


async def test_sessions_know_the_key_that_began_them(api, make_key):
    key, made = await make_key()
    session = await api.session(key=key)
    assert api.services.sessions.find(session).key_id == made["key_id"]
    row = await api.services.store.session(made["account_id"], session)
    assert row["key_id"] == made["key_id"]


async def test_revoked_key_is_refused_by_the_next_request_of_a_running_session(api, make_key):
    key, made = await make_key()
    model = await api.model(key=key)
    token = (await api.ok("/auth/token", {}, key=key))["jwt"]
    await api.ok("/optim_step", {"model_id": model, "seq_id": 1}, key=token)
    revoked = await api.request("DELETE", f"/accounts/{made['account_id']}/keys/{made['key_id']}")
    assert revoked.json()["revoked_at"]
    step = {"model_id": model, "seq_id": 2}
    await refused(await api.post("/optim_step", step, key=key), 401, "revoked")
    await refused(await api.post("/optim_step", step, key=token), 401, "revoked")
    await refused(await api.post("/auth/token", {}, key=token), 401, "revoked")


async def test_key_is_refused_once_it_has_expired(virtual):
    account = await virtual.ok("/accounts", {"name": "Ada"})
    body = {"name": "short", "lifetime_s": 60}
    key = (await virtual.ok(f"/accounts/{account['account_id']}/keys", body))["key"]
    virtual.clock.advance(59)
    assert (await virtual.get("/sessions", key=key)).status_code == 200
    virtual.clock.advance(1)
    await refused(await virtual.get("/sessions", key=key), 401, "expired")


async def test_disabled_account_is_refused_with_all_its_keys_until_enabled(api, make_key):
    key, made = await make_key()
    second, _ = await make_key(made["account_id"])
    path = f"/accounts/{made['account_id']}"
    await api.request("PATCH", path, {"disabled": True})
    for one in (key, second):
        await refused(await api.get("/sessions", key=one), 401, "disabled")
    await api.request("PATCH", path, {"disabled": False})
    assert (await api.get("/sessions", key=key)).status_code == 200


@pytest.mark.parametrize("scope", ["train", "sample", "read"])
async def test_key_with_one_scope_gets_what_needs_it_and_is_refused_the_rest(api, make_key, scope):
    key, _ = await make_key(scopes=[scope])
    for (method, path), needed in NEEDED.items():
        below = path.removeprefix(endpoints.PREFIX)
        if below in {path, "/auth/apikey/me"}:
            continue
        called = re.sub("{[^}]*}", "none", below)
        status = (await api.request(method, called, key=key)).status_code
        if (needed in {"train", "sample", "read"} and needed != scope) or needed == "admin":
            assert status == 403, (method, path)
        else:
            assert status != 403, (method, path)


async def test_refusal_of_a_scope_says_which_one_is_missing(api, make_key):
    key, _ = await make_key(scopes=["read"])
    response = await api.post("/create_model", {}, key=key)
    await refused(response, 403, "'train'", "it has: read")


async def test_member_finds_no_administration(api, make_key):
    key, made = await make_key()
    for path in ("/accounts", f"/accounts/{made['account_id']}", "/accounts/none"):
        await refused(await api.get(path, key=key), 403, "admins")
    await refused(await api.get("/accounts", key=OTHER_KEY), 403, "admins")


async def test_role_changes_what_running_keys_may_do(api, make_key):
    # The operator's keys have every scope; the role alone holds the second one back.
    accounts = (await api.get("/accounts")).json()["accounts"]
    other = next(one for one in accounts if one["role"] == "member")["account_id"]
    await api.request("PATCH", f"/accounts/{other}", {"role": "admin"})
    assert (await api.get("/accounts", key=OTHER_KEY)).status_code == 200
    await api.request("PATCH", f"/accounts/{other}", {"role": "member"})
    await refused(await api.get("/accounts", key=OTHER_KEY), 403, "admins")


async def test_admin_sees_no_other_accounts_work(api, make_key):
    key, _ = await make_key()
    model = await api.model(key=key)
    await refused(await api.get(f"/training_runs/{model}", key=KEY), 404)


async def test_member_makes_keys_for_itself_that_may_do_no_more(api, make_key):
    key, made = await make_key(scopes=["read", "sample"])
    own = await api.ok("/keys", {"name": "child"}, key=key)
    assert own["account_id"] == made["account_id"]
    assert own["scopes"] == ["read", "sample"]
    await refused(
        await api.post("/keys", {"name": "x", "scopes": ["train"]}, key=key), 400, "train"
    )
    await refused(
        await api.post("/keys", {"name": "x", "scopes": ["admin"]}, key=key), 400, "admin"
    )


async def test_key_with_limits_ends_itself_and_no_other(api, make_key):
    whole, made = await make_key()
    limited, limited_made = await make_key(made["account_id"], lifetime_s=1000)
    response = await api.request("DELETE", f"/keys/{made['key_id']}", key=limited)
    await refused(response, 403, "no other")
    await refused(await api.post("/keys", {"name": "x"}, key=limited), 400, "makes no keys")
    response = await api.request("DELETE", f"/keys/{limited_made['key_id']}", key=limited)
    assert response.status_code == 200
    await refused(await api.get("/keys", key=limited), 401, "revoked")
    assert (await api.get("/keys", key=whole)).status_code == 200


async def test_key_describes_and_deletes_itself(api, make_key):
    key, _ = await make_key(note="for cron")
    described = (await api.get("/auth/apikey/me", key=key)).json()
    assert (described["name"], described["note"]) == ("laptop", "for cron")
    assert isinstance(described["key_id"], int)
    assert described["details"]["user_details"]["email"] == "Ada"
    assert (await api.request("DELETE", "/auth/apikey/me", key=key)).status_code == 200
    await refused(await api.get("/auth/apikey/me", key=key), 401, "revoked")


async def test_operators_key_is_not_deleted_over_the_network(api):
    await refused(await api.request("DELETE", "/auth/apikey/me"), 403, "key file")
    assert (await api.get("/sessions")).status_code == 200


async def test_key_that_has_used_what_it_may_gets_no_more_work(api, make_key):
    key, made = await make_key(max_tokens=8)
    model = await api.model(key=key)
    future = await api.ok("/forward_backward", batch_json(model, 1), key=key)  # four tokens
    await api.result(future, key=key)
    future = await api.ok("/forward_backward", batch_json(model, 2), key=key)
    assert "error" not in await api.result(future, key=key)
    response = await api.post("/forward_backward", batch_json(model, 3), key=key)
    await refused(response, 402, "used 8 of the 8 tokens")
    # looking at what there is costs nothing
    assert (await api.get(f"/training_runs/{model}", key=key)).status_code == 200
    other, _ = await make_key(made["account_id"])
    assert (await api.post("/forward_backward", batch_json(model, 3), key=other)).status_code == 200


async def test_key_that_has_used_its_seconds_gets_no_more_work(api, make_key):
    key, _ = await make_key(max_seconds=1e-9)
    session = await api.session(key=key)
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": BASE_MODEL}
    sampler = (await api.ok("/create_sampling_session", body, key=key))["sampling_session_id"]
    await api.result(await api.ok("/asample", sample_json(sampler), key=key), key=key)
    await refused(await api.post("/asample", sample_json(sampler, 1), key=key), 402, "seconds")


async def test_bearer_is_as_good_as_the_header_of_the_sdk(api):
    response = await api.get("/sessions", key=None, headers={"Authorization": f"Bearer {KEY}"})
    assert response.status_code == 200
    response = await api.get("/sessions", key=None, headers={"Authorization": "Bearer tml-wrong"})
    await refused(response, 401)
    response = await api.get("/sessions", key=None, headers={"Authorization": f"Basic {KEY}"})
    await refused(response, 401, "No API key")


async def test_change_of_an_account_that_is_refused_in_part_changes_nothing(api):
    made = (await api.post("/accounts", {"name": "Ada"})).json()
    path = f"/accounts/{made['account_id']}"
    change = {"role": "admin", "disabled": True, "password": "long enough to be taken"}
    await refused(await api.request("PATCH", path, change), 400, "e-mail")
    assert (await api.get(path)).json() == made
    await refused(await api.request("PATCH", path, change | {"role": "king"}), 400, "king")
    assert (await api.get(path)).json() == made
