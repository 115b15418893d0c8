"""`tinkex mesh key`: what is sent where nothing is given, and what is said of each key."""

import pytest
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.cli.mesh.endpoint import Endpoint
from tinkex.mesh.accounts.accounts import KeyTerms, check_terms
from tinkex.mesh.accounts.scopes import DEFAULT_SCOPES

YEAR_2001, YEAR_2286 = 1e9, 1e10
KEY = {
    "key_id": "key-1",
    "name": "laptop",
    "prefix": "tmk-",
    "scopes": ["infer"],
    "created_at": YEAR_2001,
    "expires_at": None,
    "token_cap": None,
    "revoked_at": None,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command against an endpoint that gives one answer: what it prints and sends."""
    monkeypatch.setattr(Endpoint, "access_token", lambda _: "token")

    def command(answer, *arguments):
        sent = []

        def ask(self, verb, path, *, credential=None, **parts):
            sent.append(parts)
            return answer

        monkeypatch.setattr(Endpoint, "ask", ask)
        where = ["--url", "http://127.0.0.1:1", "--data-dir", str(tmp_path)]
        done = CliRunner().invoke(app, ["mesh", "key", *arguments, *where])
        assert done.exit_code == 0, done.output
        return done.output, sent

    return command


def test_key_without_a_name_has_one_that_may_be(run):
    _, ((sent),) = run({"key": "tmk-secret", "info": KEY}, "create")
    check_terms(KeyTerms(name=sent["json"]["name"], scopes=DEFAULT_SCOPES))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "active"),
        ({"expires_at": YEAR_2286}, "active"),
        ({"expires_at": YEAR_2001 + 1}, "expired"),
        ({"expires_at": YEAR_2001 + 1, "revoked_at": YEAR_2001}, "revoked"),
    ],
    ids=str,
)
def test_state_of_a_key_is_told(run, changes, state):
    shown, _ = run({"keys": [KEY | changes]}, "list")
    assert [one for one in ("active", "expired", "revoked") if one in shown] == [state]
