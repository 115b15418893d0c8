"""`tinkex account` and `tinkex key` on the folder of a server that runs, or of none."""

import json
import sqlite3

import pytest
from server_support import KEY
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.errors import ConfigurationError, InputError, NotFoundError
from tinkex.server.accounts.keys import digest_of, key_id_of

OPERATOR = key_id_of(digest_of(KEY))
PASSWORD = "correct horse battery"


@pytest.fixture
def tinkex(tmp_path):
    """Run a command on the server's folder: what it printed, as JSON if it is asked for."""

    def run(*arguments, form="json", typed=None):
        line = ["--format", form, *arguments, "--data-dir", str(tmp_path / "data")]
        done = CliRunner().invoke(app, line, input=typed, env={"COLUMNS": "200"})
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if form == "json" else done.stdout

    return run


@pytest.fixture
def ada(tinkex):
    return lambda: tinkex("account", "create", "Ada", "--email", "ada@example.org")["account_id"]


async def test_key_made_by_command_works_on_the_running_server_until_revoked(api, tinkex, ada):
    account = ada()
    made = tinkex("key", "create", account, "--name", "laptop")
    key = made["key"]
    session = await api.session(key=key)
    tinkex("key", "revoke", made["key_id"])
    response = await api.post("/session_heartbeat", {"session_id": session}, key=key)
    assert response.status_code == 401
    assert "revoked" in response.json()["detail"]


async def test_key_has_the_terms_of_its_flags(api, tinkex, ada):
    flags = ["--scope", "read", "--scope", "sample", "--expires-in", "90d", "--max-tokens", "1000"]
    made = tinkex("key", "create", ada(), *flags, "--note", "for cron")
    assert made["scopes"] == ["read", "sample"]
    assert (made["max_tokens"], made["max_seconds"], made["note"]) == (1000, None, "for cron")
    assert made["expires_at"]
    assert (await api.post("/create_model", {}, key=made["key"])).status_code == 403
    table = tinkex("key", "info", made["key_id"], form="table")
    assert made["prefix"] in table
    assert made["key"] not in table


async def test_lists_name_everybody_and_show_no_key(api, tinkex, ada):
    account = ada()
    made = tinkex("key", "create", account)
    accounts = tinkex("account", "list")["accounts"]
    assert {one["account_id"] for one in accounts} > {OPERATOR, account}
    assert [one["key_id"] for one in tinkex("key", "list", "--account", account)["keys"]] == [
        made["key_id"]
    ]
    for command in ("account", "key"):
        table = tinkex(command, "list", form="table")
        assert made["key"] not in table
        assert "Ada" in table or made["prefix"] in table


async def test_disabled_account_is_refused_until_enabled(api, tinkex, ada):
    account = ada()
    key = tinkex("key", "create", account)["key"]
    assert tinkex("account", "disable", account)["disabled_at"]
    assert (await api.get("/sessions", key=key)).status_code == 401
    tinkex("account", "enable", account)
    assert (await api.get("/sessions", key=key)).status_code == 200


async def test_role_and_password_are_changed_on_the_running_server(api, tinkex, ada):
    account = ada()
    key = tinkex("key", "create", account, "--scope", "read")["key"]
    tinkex("account", "set-role", account, "admin")
    assert (await api.get("/accounts", key=key)).status_code == 403  # the key lacks the scope
    key = tinkex("key", "create", account)["key"]
    assert (await api.get("/accounts", key=key)).status_code == 200
    shown = tinkex("account", "set-password", account, typed=f"{PASSWORD}\n")
    assert shown["has_password"]
    login = {"email": "ada@example.org", "password": PASSWORD}
    assert (await api.post("/auth/login", login, key=None)).status_code == 200


async def test_what_the_operator_did_is_in_the_audit_log(api, tinkex, ada):
    account = ada()
    key = tinkex("key", "create", account, "--scope", "read")["key_id"]
    tinkex("key", "revoke", key)
    tinkex("account", "set-role", account, "admin")
    tinkex("account", "set-password", account, typed=f"{PASSWORD}\n")
    tinkex("account", "disable", account)
    tinkex("account", "enable", account)
    entries = (await api.get("/audit?event_type=organizations")).json()["entries"]
    told = [(one["event"], one["event_details"]) for one in entries]
    assert all(d["account_id"] == account and d["by"] == "operator" for _, d in told)
    shown = [
        (e, {k: v for k, v in d.items() if k in {"key", "role", "disabled", "password_set"}})
        for e, d in told
    ]
    assert shown == [
        ("account_create", {"role": "member"}),
        ("key_create", {"key": key}),
        ("key_revoke", {"key": key}),
        ("account_change", {"role": "admin"}),
        ("account_change", {"password_set": True}),
        ("account_change", {"disabled": True}),
        ("account_change", {"disabled": False}),
    ]
    assert PASSWORD not in str(entries)


async def test_what_cannot_be_is_refused_saying_why(api, tinkex, ada):
    account = ada()
    for error, words, arguments in (
        (NotFoundError, "no account", ("key", "create", "acct-none")),
        (NotFoundError, "no account", ("key", "list", "--account", "acct-none")),
        (NotFoundError, "no key", ("key", "revoke", "key-none")),
        (InputError, "key file", ("key", "revoke", OPERATOR)),
        (InputError, "role admin", ("key", "create", account, "--scope", "admin")),
        (InputError, "fly", ("key", "create", account, "--scope", "fly")),
        (InputError, "only admin", ("account", "disable", OPERATOR)),
    ):
        with pytest.raises(error, match=words):
            tinkex(*arguments)
    done = CliRunner().invoke(app, ["key", "create", account, "--expires-in", "soon"])
    assert done.exit_code == 2
    assert "90d" in done.output


def test_folder_that_no_server_used_is_not_made_into_one(tinkex, tmp_path):
    with pytest.raises(ConfigurationError, match="no database"):
        tinkex("account", "list")
    assert list(tmp_path.iterdir()) == []


async def test_database_of_another_version_is_left_as_it_is(api, tinkex, tmp_path):
    database = tmp_path / "data" / "tinkex.sqlite3"
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    with pytest.raises(ConfigurationError, match="another version"):
        tinkex("account", "list")
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
    connection.close()
