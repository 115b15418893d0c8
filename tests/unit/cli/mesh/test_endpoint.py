"""The commands' way to the local endpoint: whose key is sent, and what cannot be sent at all."""

import base64
import errno
import json
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.cli.mesh.endpoint import Endpoint, answer_of, find_caller, find_endpoint
from tinkex.cli.mesh.places import ReadyFiles, read_private, write_private
from tinkex.cli.mesh.talk import chat
from tinkex.errors import (
    AuthenticationError,
    ConfigurationError,
    CredentialError,
    InputError,
    RateLimitError,
)

NOBODY = "http://127.0.0.1:1"
OTHER = "http://127.0.0.1:2"
SESSION = {
    "access_token": "logged-in",
    "refresh_token": "more",
    "access_expires_at": math.inf,
    "url": NOBODY,
    "network_id": None,
}
UNSENDABLE = [{"days": math.nan}, {"days": math.inf}, {"name": "\udcff"}]


@pytest.fixture
def runs_here():
    """Let a worker of this machine be there from now on, as its ready file says."""
    running = []

    def run(folder, network, url=NOBODY):
        running.append(ReadyFiles(folder / "ready.json"))
        running[-1].write({"url": url, "api_key": "tmk-ready", "network_id": network})

    yield run
    for ready in running:
        ready.remove()


@pytest.fixture
def folder(tmp_path, runs_here, monkeypatch):
    monkeypatch.delenv("TINKEX_MESH_KEY", raising=False)
    runs_here(tmp_path, None)
    return tmp_path


@pytest.mark.parametrize("given", [None, NOBODY, f"{NOBODY}/", f"{NOBODY}/v1", f"{NOBODY}/v1/"])
def test_key_of_what_runs_here_is_sent_there_however_its_url_is_written(folder, given):
    found = find_endpoint(given, folder)
    assert (found.url, found.api_key) == (NOBODY, "tmk-ready")


def test_key_of_what_runs_here_is_sent_nowhere_else(folder):
    assert find_endpoint("http://127.0.0.1:2", folder).api_key is None


def test_who_has_logged_in_acts_not_the_account_of_what_runs_here(folder, runs_here):
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


def old_session(network):
    """As versions before this one kept it: of no named place, but for its token."""
    claims = base64.urlsafe_b64encode(json.dumps({"aud": network}).encode()).rstrip(b"=")
    kept = {**SESSION, "access_token": f"e30.{claims.decode()}.c2ln"}
    return {name: value for name, value in kept.items() if name not in ("url", "network_id")}


def test_session_is_sent_to_no_endpoint_but_the_one_that_gave_it(folder):
    write_private(folder / "session.json", SESSION)
    elsewhere = find_endpoint(OTHER, folder)
    for use in (elsewhere.access_token, elsewhere.credential):
        with pytest.raises(CredentialError, match=f"not logged in at {OTHER}.* of {NOBODY}"):
            use()


def test_session_that_is_about_to_end_is_not_renewed_at_another_endpoint(folder, monkeypatch):
    monkeypatch.setattr(Endpoint, "ask", lambda self, *parts, **more: pytest.fail("it was sent"))
    write_private(folder / "session.json", SESSION | {"access_expires_at": 0.0})
    with pytest.raises(CredentialError):
        find_endpoint(OTHER, folder).access_token()


def test_session_of_another_network_gives_way_to_the_key_of_what_runs_here(
    folder, runs_here, capsys
):
    write_private(folder / "session.json", SESSION | {"network_id": "theirs"})
    runs_here(folder, "ours")  # at the very URL where the other network was
    found = find_caller(None, folder)
    assert found.credential() == "tmk-ready"
    assert "another network" in capsys.readouterr().err
    with pytest.raises(CredentialError, match="tinkex mesh login"):
        found.access_token()


def test_session_acts_at_every_endpoint_of_its_network_on_this_machine(folder, runs_here):
    runs_here(folder, "ours")
    find_endpoint(None, folder).keep_session(SESSION)
    runs_here(folder, "ours", url=OTHER)  # it took another port at its next start
    assert find_endpoint(None, folder).credential() == "logged-in"


def test_endpoint_that_puts_another_network_into_its_tokens_gains_no_account_there(
    folder, runs_here
):
    write_private(folder / "session.json", {**old_session("ours"), "url": OTHER})
    runs_here(folder, "ours")
    assert find_endpoint(None, folder).credential() == "tmk-ready"


def test_session_of_an_older_version_acts_where_its_token_is_of_and_nowhere_else(folder, runs_here):
    write_private(folder / "session.json", old_session("ours"))
    runs_here(folder, "ours")
    assert find_endpoint(None, folder).credential().startswith("e30.")
    runs_here(folder, "theirs")
    assert find_endpoint(None, folder).credential() == "tmk-ready"
    with pytest.raises(CredentialError, match="its file does not name"):
        find_endpoint(OTHER, folder).credential()


def test_renewed_session_stays_bound_while_nothing_says_what_runs(folder, runs_here, monkeypatch):
    kept = SESSION | {"network_id": "ours", "access_expires_at": 0.0}
    write_private(folder / "session.json", kept)
    (folder / "ready.json").unlink()
    renewed = {"access_token": "renewed", "access_expires_at": math.inf, "refresh_token": "next"}
    monkeypatch.setattr(Endpoint, "ask", lambda self, *parts, **more: renewed)
    assert find_endpoint(NOBODY, folder).access_token() == "renewed"
    assert read_private(folder / "session.json") == {**kept, **renewed}
    runs_here(folder, "theirs")
    assert find_endpoint(None, folder).credential() == "tmk-ready"


def test_commands_at_the_same_time_renew_a_session_once(folder, monkeypatch):
    """A refresh token works once: a second use ends the session."""
    write_private(folder / "session.json", SESSION | {"access_expires_at": 0.0})
    together, renewed = threading.Barrier(4), []

    def ask(self, verb, path, *, json):
        renewed.append(json["refresh_token"])
        with suppress(threading.BrokenBarrierError):
            together.wait(timeout=0.3)  # as long as others may come meanwhile
        return {"access_token": "new", "access_expires_at": math.inf, "refresh_token": "next"}

    monkeypatch.setattr(Endpoint, "ask", ask)
    with ThreadPoolExecutor(4) as commands:
        tokens = [commands.submit(find_endpoint(NOBODY, folder).access_token) for _ in range(4)]
    assert [token.result() for token in tokens] == ["new"] * 4
    assert renewed == ["more"]


RENEWED = {"access_token": "new", "access_expires_at": math.inf, "refresh_token": "next"}


def test_session_is_not_lost_to_who_presses_control_c_as_it_is_renewed(folder, monkeypatch, capsys):
    """A refresh token works once: whoever used it needs the answer."""
    write_private(folder / "session.json", SESSION | {"access_expires_at": 0.0})

    def ask(self, verb, path, *, json):
        signal.raise_signal(signal.SIGINT)
        return RENEWED

    monkeypatch.setattr(Endpoint, "ask", ask)
    with pytest.raises(KeyboardInterrupt):
        find_endpoint(NOBODY, folder).access_token()
    assert "Ctrl-C again" in capsys.readouterr().err
    monkeypatch.undo()
    assert find_endpoint(NOBODY, folder).access_token() == "new"


def test_second_control_c_ends_the_renewing_of_a_session_at_once(folder, monkeypatch):
    write_private(folder / "session.json", SESSION | {"access_expires_at": 0.0})

    def ask(self, verb, path, *, json):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        pytest.fail("it goes on")

    monkeypatch.setattr(Endpoint, "ask", ask)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        find_endpoint(NOBODY, folder).access_token()
    assert signal.getsignal(signal.SIGINT) is before


def test_session_that_the_disk_has_no_room_for_is_not_renewed(folder, monkeypatch):
    write_private(folder / "session.json", SESSION | {"access_expires_at": 0.0})
    monkeypatch.setattr(Endpoint, "ask", lambda self, *parts, **more: pytest.fail("it was sent"))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tinkex._files.write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        find_endpoint(NOBODY, folder).access_token()


def test_logout_elsewhere_forgets_the_session_and_sends_it_nowhere(folder, monkeypatch):
    monkeypatch.setattr(Endpoint, "ask", lambda self, *parts, **more: pytest.fail("it was sent"))
    write_private(folder / "session.json", SESSION)
    command = ["mesh", "logout", "--url", OTHER, "--data-dir", str(folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "not ended there" in done.output
    assert read_private(folder / "session.json") is None


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


@pytest.mark.parametrize(("told", "after_ms"), [("1500", 1500.0), ("soon", None), (None, None)])
def test_refusal_says_when_to_come_back(told, after_ms):
    headers = {} if told is None else {"retry-after-ms": told}
    reply = httpx.Response(429, headers=headers, json={"error": {"message": "later"}})
    with pytest.raises(RateLimitError, match="later") as refused:
        answer_of(reply)
    assert refused.value.retry_after_ms == after_ms
