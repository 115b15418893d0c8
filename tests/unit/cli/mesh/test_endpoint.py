"""The commands' way to the local endpoint: whose key is sent, and what cannot be sent at all."""

import math

import pytest

from tinkex.cli.mesh.endpoint import Endpoint, find_endpoint
from tinkex.cli.mesh.places import write_private
from tinkex.cli.mesh.talk import chat
from tinkex.errors import ConfigurationError, InputError

NOBODY = "http://127.0.0.1:1"
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
