"""Keys, tokens and passwords: not in logs, reprs and errors, only where they belong."""

import io
import traceback
from dataclasses import fields, is_dataclass

import httpx
import pytest
from server_support import BASE_MODEL, KEY, OTHER_KEY, Api

from tinkex._clock import SystemClock
from tinkex._logs import make_logger
from tinkex.passwords import Passwords
from tinkex.server.accounts.directory import KeyTerms
from tinkex.server.accounts.messages import (
    ChangeAccountRequest,
    CreateAccountRequest,
    LoginRequest,
    LoginResponse,
    NewKeyResponse,
)
from tinkex.server.app import build_app
from tinkex.types import AuthTokenResponse

PASSWORD = "correct horse battery"
WRONG = "tml-wrong-0123456789abcdef"


@pytest.fixture
async def told(make_config, make_engine):
    """A server that logs everything: (how to call it, what it logged, what it answered)."""
    log, answers = io.StringIO(), []
    logger = make_logger("debug", log)
    app = build_app(make_config(), {BASE_MODEL: make_engine()}, clock=SystemClock(), logger=logger)

    async def note(response):
        await response.aread()
        answers.append(f"{response.headers} {response.text}")

    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    hooks = {"response": [note]}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", event_hooks=hooks
        ) as client,
    ):
        yield Api(app, client), log, answers


def pieces(secret):
    """What of a secret must not be seen: all of it, nor what follows the part that may be."""
    return [secret, secret[12:]] if len(secret) > 40 else [secret]


async def test_nothing_that_is_logged_or_answered_holds_a_secret(told, monkeypatch):
    api, log, answers = told
    directory = api.services.accounts.directory
    directory._passwords = Passwords(memory_kib=64)
    body = {"name": "Ada", "email": "ada@example.org", "password": PASSWORD}
    account = await api.ok("/accounts", body)
    made = await api.ok(f"/accounts/{account['account_id']}/keys", {"name": "k"})
    login = {"email": "ada@example.org", "password": PASSWORD}
    by_login = (await api.ok("/auth/login", login, key=None))["jwt"]
    by_key = (await api.ok("/auth/token", {}, key=made["key"]))["jwt"]
    assert len(answers) == 4
    answers[1:] = []  # from here on none of it is shown again
    for key in (made["key"], by_login, by_key, KEY):
        await api.get("/keys", key=key)
        await api.get("/accounts", key=key)
        await api.post("/auth/login", {**login, "password": PASSWORD + "!", "x": key}, key=None)
        await api.post("/create_model", {"session_id": key, "tokens": key}, key=key)
        await api.get(f"/no/such/path/{key}", key=key)
        await api.get("/usage", key=key)
    for key in (WRONG, by_key[:-3] + "abc", by_key + "x"):
        await api.get("/sessions", key=key)
    await api.request("PATCH", f"/accounts/{account['account_id']}", {"password": "short one"})

    def broken(*_):
        raise RuntimeError(f"while {made['key']} was looked at with {by_key}")

    monkeypatch.setattr(directory, "accounts", broken)
    assert (await api.get("/accounts")).status_code == 500
    stored = [made["key"], KEY, OTHER_KEY, PASSWORD, WRONG, by_login, by_key, "short one"]
    stored.append(directory._store.account(account["account_id"]).password_hash)
    logged = log.getvalue()
    assert "request failed" in logged, "the log is what is looked at"
    for secret in stored:
        for piece in pieces(secret):
            assert piece not in logged
            # a path that nobody has is named in its refusal, whatever stands in it
            echoed = [text for text in answers if "/no/such/path/" not in text]
            assert not any(piece in text for text in echoed)


async def test_no_object_shows_a_secret_when_it_is_printed(api):
    accounts = api.services.accounts
    accounts.directory._passwords = Passwords(memory_kib=64)
    account = accounts.directory.create_account("Ada", email="a@b", password=PASSWORD)
    made = accounts.directory.create_key(account.account_id, "k", KeyTerms())
    jwt, _ = accounts.tokens.issue(accounts.authenticator.claims(made.secret))
    claims = accounts.tokens.read(jwt)
    caller = accounts.authenticator.caller(jwt)
    printed = [
        *(account, made, made.key, claims, caller, api.services.config),
        *(accounts, accounts.store, accounts.tokens, accounts.tokens._keys, accounts.directory),
        LoginRequest(email="a@b", password=PASSWORD),
        CreateAccountRequest(name="Ada", password=PASSWORD),
        ChangeAccountRequest(password=PASSWORD),
        LoginResponse(jwt=jwt, expires_at="2026-01-01T00:00:00Z"),
        AuthTokenResponse(jwt=jwt),
        NewKeyResponse.model_construct(key=made.secret),
    ]
    private = accounts.tokens._keys[-1].private.private_bytes_raw().hex()
    for thing in printed:
        text = f"{thing!r} {thing}"
        for secret in (made.secret, made.key.digest, PASSWORD, account.password_hash, jwt, KEY):
            assert secret not in text, type(thing)
        assert private not in text


def test_crash_on_a_terminal_shows_no_variables():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def look_at(key):
        raise RuntimeError("no")

    shown = Terminal()
    secret = "not of any form that is known as a secret's"
    try:
        look_at(secret)
    except RuntimeError as error:
        make_logger("error", shown).error("fault", exc_info=error)
        assert traceback.format_exc().splitlines()[-1] in shown.getvalue()
    assert "look_at" in shown.getvalue()
    assert secret not in shown.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_key_that_gets_into_a_log_line_is_taken_out(terminal):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    make_logger("info", shown).info("event", detail=f"with {WRONG} and eyJhbGciOiJub25lIn0.e30.x")
    assert "[redacted]" in shown.getvalue()
    assert WRONG not in shown.getvalue()
    assert "eyJ" not in shown.getvalue()


def test_every_record_of_accounts_that_holds_a_hash_leaves_it_out_of_its_repr():
    from tinkex.server.accounts import records

    kinds = [kind for kind in vars(records).values() if is_dataclass(kind)]
    assert kinds
    shown = {f.name for kind in kinds for f in fields(kind) if f.repr}
    assert shown & {"password_hash", "digest", "secret"} == set()
