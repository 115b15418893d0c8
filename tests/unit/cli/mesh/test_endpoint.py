"""The commands' way to the local endpoint: whose key is sent, and what cannot be sent at all."""

import math

import pytest
from typer.testing import CliRunner

from tinkex.cli.main import app
from tinkex.cli.mesh.endpoint import Endpoint, find_endpoint
from tinkex.cli.mesh.places import write_private
from tinkex.cli.mesh.talk import chat
from tinkex.errors import AuthenticationError, ConfigurationError, CredentialError, InputError

NOBODY = "http://127.0.0.1:1"
SESSION = {"access_token": "logged-in", "refresh_token": "more", "access_expires_at": math.inf}
UNSENDABLE = [{"days": math.nan}, {"days": math.inf}, {"name": "\udcff"}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("TINKEX_MESH_KEY", raising=False)
    write_private(tmp_path / "ready.json", {"url": NOBODY, "api_key": "tmk-ready"})
    return tmp_path


@pytest.mark.parametrize("given", [None, NOBODY, f"{NOBODY}/", f"{NOBODY}/v1", f"{NOBODY}/v1/"])
def test_key_of_what_runs_here_is_sent_there_however_its_url_is_written(folder, given):
    found = find_endpoint(given, folder)
    assert (found.url, found.api_key) == (NOBODY, "tmk-ready")


def test_key_of_what_runs_here_is_sent_nowhere_else(folder):
    assert find_endpoint("http://127.0.0.1:2", folder).api_key is None


def test_who_has_logged_in_acts_not_the_account_of_what_runs_here(folder):
    write_private(folder / "session.json", SESSION)
    found = find_endpoint(None, folder)
    assert found.credential() == found.access_token() == "logged-in"
    found.forget_session()
    assert find_endpoint(None, folder).credential() == "tmk-ready"


def test_key_of_the_environment_goes_before_everything(folder, monkeypatch):
    write_private(folder / "session.json", SESSION)
    monkeypatch.setenv("TINKEX_MESH_KEY", "tmk-given")
    assert find_endpoint(None, folder).credential() == "tmk-given"


def test_nobody_is_anybody_without_key_and_login(tmp_path, monkeypatch):
    monkeypatch.delenv("TINKEX_MESH_KEY", raising=False)
    with pytest.raises(CredentialError, match="tinkex mesh login"):
        find_endpoint(NOBODY, tmp_path).credential()


@pytest.fixture
def ended(folder, monkeypatch):
    """A session that the network knows no more."""

    def ask(self, verb, path, **parts):
        raise AuthenticationError("the session has ended")

    monkeypatch.setattr(Endpoint, "ask", ask)
    write_private(folder / "session.json", SESSION | {"access_expires_at": 0.0})
    return folder


def test_session_that_has_ended_is_told_with_both_ways_on(ended):
    with pytest.raises(AuthenticationError, match=r"login.*logout"):
        find_endpoint(None, ended).credential()


@pytest.mark.parametrize("expires_at", [0.0, math.inf])
def test_logout_forgets_a_session_that_the_network_knows_no_more(ended, expires_at):
    write_private(ended / "session.json", SESSION | {"access_expires_at": expires_at})
    done = CliRunner().invoke(app, ["mesh", "logout", "--data-dir", str(ended)])
    assert done.exit_code == 0, done.output
    assert find_endpoint(None, ended).credential() == "tmk-ready"


@pytest.mark.parametrize("body", UNSENDABLE, ids=str)
def test_what_no_request_can_hold_is_a_typed_error(folder, body):
    with pytest.raises(InputError, match="cannot be sent"):
        find_endpoint(None, folder).ask("POST", "/mesh/keys", credential="x", json=body)


@pytest.mark.parametrize(
    ("message", "temperature"), [("\udcff", 1.0), ("x", math.nan)], ids=["text", "number"]
)
def test_chat_of_what_no_request_can_hold_is_a_typed_error(folder, message, temperature):
    with pytest.raises(InputError, match="cannot be sent"):
        chat("sprout", message=message, temperature=temperature, data_dir=folder, url=None)


def test_key_that_was_copied_with_an_ellipsis_is_a_typed_error(folder, monkeypatch):
    monkeypatch.setenv("TINKEX_MESH_KEY", "tmk-\u2026")
    endpoint = find_endpoint(None, folder)
    with pytest.raises(InputError, match="keys are ASCII") as refused:
        endpoint.ask("GET", "/mesh/usage", credential=endpoint.credential())
    assert "tmk" not in str(refused.value)


def test_url_that_is_none_is_a_typed_error(tmp_path):
    with pytest.raises(ConfigurationError, match="is no URL"):
        Endpoint("http://127.0.0.1:port", None, tmp_path).ask("GET", "/mesh/usage")
