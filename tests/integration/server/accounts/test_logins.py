"""Tokens for keys and for passwords."""

import jwt as library
import pytest
from server_support import KEY, OTHER_KEY

from tinkex.passwords import Passwords

PASSWORD = "correct horse battery"


async def log_in(api, email, password):
    return await api.post("/auth/login", {"email": email, "password": password}, key=None)


async def account(api, **fields):
    """Make an account; passwords are hashed as the server does, at a thousandth of the cost."""
    api.services.accounts.directory._passwords = Passwords(memory_kib=64)
    body = {"name": "Ada", "email": "ada@example.org", "password": PASSWORD, **fields}
    return await api.ok("/accounts", body)


async def test_token_of_a_key_is_the_key_but_for_a_while(virtual):
    token = (await virtual.ok("/auth/token", {}))["jwt"]
    session = await virtual.session(key=token)
    assert (await virtual.get(f"/sessions/{session}", key=KEY)).status_code == 200
    assert (await virtual.get(f"/sessions/{session}", key=OTHER_KEY)).status_code == 404
    virtual.clock.advance(3600)
    response = await virtual.get("/sessions", key=token)
    assert response.status_code == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


async def test_wrong_key_is_not_taken_for_a_token_that_ended(api):
    response = await api.post("/auth/token", {}, key="tml-wrong-0123456789")
    assert response.status_code == 401
    assert "invalid_token" not in response.headers["www-authenticate"]


@pytest.mark.parametrize("token", ["eyJ", "eyJhbGciOiJub25lIn0.e30.", "eyJ" + "a" * 9000])
async def test_forged_token_is_refused(api, token):
    response = await api.get("/sessions", key=token)
    assert response.status_code == 401
    assert token not in response.text


async def test_password_opens_what_the_accounts_keys_open(api):
    made = await account(api)
    reply = (await log_in(api, "Ada@example.org", PASSWORD)).json()
    claims = library.decode(reply["jwt"], options={"verify_signature": False})
    assert claims["email"] == "ada@example.org"
    assert claims["sub"].endswith(made["account_id"])
    key = (await api.ok("/keys", {"name": "first"}, key=reply["jwt"]))["key"]
    session = await api.session(key=key)
    assert (await api.get(f"/sessions/{session}", key=reply["jwt"])).status_code == 200
    assert (await api.get("/auth/apikey/me", key=reply["jwt"])).status_code == 404


async def test_wrong_password_and_unknown_address_get_the_same_answer(api):
    await account(api)
    wrong = await log_in(api, "ada@example.org", "wrong password!")
    unknown = await log_in(api, "bob@example.org", "wrong password!")
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.content == unknown.content


async def test_account_without_a_password_and_a_disabled_one_get_that_answer_too(api):
    await account(api, password=None)
    without = await log_in(api, "ada@example.org", PASSWORD)
    made = await account(api, email="bob@example.org")
    await api.request("PATCH", f"/accounts/{made['account_id']}", {"disabled": True})
    disabled = await log_in(api, "bob@example.org", PASSWORD)
    unknown = await log_in(api, "carol@example.org", PASSWORD)
    assert without.content == disabled.content == unknown.content


async def test_ten_failures_make_an_address_wait_known_or_not(virtual):
    await account(virtual)
    for email in ("ada@example.org", "nobody@example.org"):
        for _ in range(10):
            assert (await log_in(virtual, email, "wrong password!")).status_code == 401
        response = await log_in(virtual, email, PASSWORD)
        assert response.status_code == 429
        assert 0 < int(response.headers["retry-after"]) <= 900
    virtual.clock.advance(900)
    assert (await log_in(virtual, "ada@example.org", PASSWORD)).status_code == 200


async def test_new_password_ends_the_logins_from_before(virtual):
    made = await account(virtual)
    token = (await log_in(virtual, "ada@example.org", PASSWORD)).json()["jwt"]
    assert (await virtual.get("/sessions", key=token)).status_code == 200
    virtual.clock.advance(1)
    await virtual.request("PATCH", f"/accounts/{made['account_id']}", {"password": PASSWORD + "2"})
    response = await virtual.get("/sessions", key=token)
    assert response.status_code == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]


async def test_login_is_renewed_for_half_a_day_and_no_longer(virtual):
    await account(virtual)
    token = (await log_in(virtual, "ada@example.org", PASSWORD)).json()["jwt"]
    for _ in range(12):
        virtual.clock.advance(3599)
        response = await virtual.post("/auth/token", {}, key=token)
        assert response.status_code == 200
        token = response.json()["jwt"]
    virtual.clock.advance(30)
    assert (await virtual.get("/sessions", key=token)).status_code == 401


async def test_disabled_account_loses_its_login(api):
    made = await account(api)
    token = (await log_in(api, "ada@example.org", PASSWORD)).json()["jwt"]
    await api.request("PATCH", f"/accounts/{made['account_id']}", {"disabled": True})
    assert (await api.get("/sessions", key=token)).status_code == 401
