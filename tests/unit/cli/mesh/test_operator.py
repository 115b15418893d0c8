"""`tinkex mesh accounts` and `quota` ask the auth worker of the folder, and say what is missing."""

import json

import pytest
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.cli.mesh import operator
from tinkex.cli.mesh.places import ReadyFiles
from tinkex.errors import ConfigurationError, InputError

REPORT = {
    "account_id": "acc_1",
    "email": "ann@example.org",
    "opened_at": 1.7e9,
    "quota_tokens": None,
    "used_tokens": 1234,
    "reserved_tokens": 5,
    "keys": 2,
}


TOLD = {"url": "http://127.0.0.1:9", "token": "00ff"}


@pytest.fixture
def runs():
    """Let a worker be there whose ready file lies in a folder."""
    running = []

    def run(folder):
        running.append(ReadyFiles(folder / "ready.json"))
        running[-1].write({"role": "auth"})

    yield run
    for ready in running:
        ready.remove()


@pytest.fixture
def asked(tmp_path, monkeypatch, runs):
    found = []

    def ask(self, verb, path, *, credential=None, **parts):
        found.append((self.url, verb, path, credential, parts))
        return REPORT if verb == "PUT" else [REPORT]

    monkeypatch.setattr(operator.Endpoint, "ask", ask)
    runs(tmp_path / "auth")
    (tmp_path / "auth" / "operator.json").write_text(json.dumps(TOLD))
    return found


def run(tmp_path, *arguments):
    return CliRunner().invoke(app, ["mesh", *arguments, "--data-dir", str(tmp_path)])


def test_accounts_are_shown(tmp_path, asked):
    shown = run(tmp_path, "accounts")
    assert shown.exit_code == 0
    assert "1,234" in shown.stdout
    assert asked == [("http://127.0.0.1:9", "GET", "/operator/accounts", "00ff", {})]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["acc_1"], ("GET", "/operator/accounts", {"params": {"account": "acc_1"}})),
        (
            ["acc_1", "500"],
            ("PUT", "/operator/quota", {"json": {"account": "acc_1", "quota_tokens": 500}}),
        ),
        (
            ["acc_1", "--unlimited"],
            ("PUT", "/operator/quota", {"json": {"account": "acc_1", "quota_tokens": None}}),
        ),
    ],
)
def test_quota_is_shown_or_set(tmp_path, asked, arguments, expected):
    assert run(tmp_path, "quota", *arguments).exit_code == 0
    ((_, verb, path, _, parts),) = asked
    assert (verb, path, parts) == expected


def test_number_and_unlimited_are_not_both_given(tmp_path, asked):
    result = run(tmp_path, "quota", "acc_1", "5", "--unlimited")
    assert isinstance(result.exception, InputError)
    assert asked == []


def test_auth_worker_of_a_whole_network_is_asked_where_its_own_was_killed(tmp_path, asked, runs):
    (tmp_path / "local" / "auth").mkdir(parents=True)
    (tmp_path / "auth" / "operator.json").rename(tmp_path / "local" / "auth" / "operator.json")
    (tmp_path / "auth" / "operator.json").write_text(json.dumps(TOLD | {"token": "of the dead"}))
    (tmp_path / "auth" / "ready.json").unlink()
    runs(tmp_path)
    assert run(tmp_path, "accounts").exit_code == 0
    assert asked == [("http://127.0.0.1:9", "GET", "/operator/accounts", "00ff", {})]


def test_auth_worker_that_was_killed_is_not_asked(tmp_path, asked):
    (tmp_path / "auth" / "ready.json").unlink()
    (tmp_path / "auth" / "ready.json").write_text("{}")
    assert isinstance(run(tmp_path, "accounts").exception, ConfigurationError)
    assert asked == []


def test_folder_without_an_auth_worker_is_told(tmp_path):
    assert isinstance(run(tmp_path, "accounts").exception, ConfigurationError)
