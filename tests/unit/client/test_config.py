"""How the settings of a client are found, and that they are its own (A2.1, A2.2)."""

from __future__ import annotations

import pytest

import tinkex
from tinkex.client.config import DEFAULT_BASE_URL, ClientConfig, normalise_url
from tinkex.errors import ConfigurationError
from tinkex.testing import VirtualClock


def resolve(environment=None, **arguments):
    arguments.setdefault("api_key", "tml-test")
    return ClientConfig.resolve(environment=environment or {}, clock=VirtualClock(), **arguments)


def test_parameters_are_written_as_the_official_client_writes_them():
    given = {"none": None, "yes": True, "several": [1, False], "number": 1.5, "word": "x"}
    written = {"yes": "true", "several": "1,false", "number": "1.5", "word": "x"}
    assert resolve(query=given).query == written


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("http://Host.Example", "http://host.example"),
        ("http://host:80", "http://host"),
        ("https://host:443/", "https://host"),
        ("https://host:8443", "https://host:8443"),
        ("http://host:443", "http://host:443"),
        ("HTTPS://host/services/Tinker-Prod/", "https://host/services/Tinker-Prod"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        (" http://host ", "http://host"),
    ],
)
def test_url_has_one_spelling(given, normal):
    assert normalise_url(given) == normal


@pytest.mark.parametrize(
    "given",
    ["", "host:8000", "ftp://host", "http://", "http://host:99999", "http://host?x=1", "//host"],
)
def test_url_that_is_no_servers_is_refused(given):
    with pytest.raises(ValueError, match=r"."):
        normalise_url(given)


def test_password_in_a_url_is_refused_and_not_shown():
    with pytest.raises(ConfigurationError) as caught:
        resolve(base_url="http://me:secret@host")
    assert "secret" not in str(caught.value)


def test_argument_wins_over_environment_wins_over_default():
    environment = {"TINKER_BASE_URL": "http://official", "TINKEX_BASE_URL": "http://ours"}
    assert resolve().base_url == DEFAULT_BASE_URL
    assert resolve({"TINKER_BASE_URL": "http://official"}).base_url == "http://official"
    assert resolve(environment).base_url == "http://ours"
    assert resolve(environment, base_url="http://argument").base_url == "http://argument"


def test_project_tags_and_telemetry_come_from_the_environment():
    config = resolve(
        {
            "TINKER_PROJECT_ID": "proj",
            "TINKER_TAGS": " b, a ,,b",
            "TINKER_TELEMETRY": "off",
        }
    )
    assert (config.project_id, config.tags, config.telemetry) == ("proj", ("b", "a"), False)
    assert resolve({"TINKER_PROJECT_ID": "proj"}, project_id="mine").project_id == "mine"


def test_headers_of_an_access_proxy_come_from_the_environment_and_stay_out_of_the_repr():
    config = resolve(
        {"CLOUDFLARE_ACCESS_CLIENT_ID": "id", "CLOUDFLARE_ACCESS_CLIENT_SECRET": "hush"},
        headers={"X-Mine": "1"},
    )
    assert dict(config.headers) == {
        "CF-Access-Client-Id": "id",
        "CF-Access-Client-Secret": "hush",
        "X-Mine": "1",
    }
    assert "hush" not in repr(config)
    assert "tml-test" not in repr(config)


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({"http_proxy": "http://p:1"}, "http://host", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:2"}, "https://host", "http://p:2"),
        ({"ALL_PROXY": "http://p:3"}, "https://host", "http://p:3"),
        ({"http_proxy": "http://p:1"}, "https://host", None),
        ({"http_proxy": "http://p:1", "no_proxy": "host"}, "http://host:8000", None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "127.0.0.1,localhost"}, "http://127.0.0.1", None),
        ({}, "http://host", None),
    ],
)
def test_proxy_is_read_once_from_the_usual_variables(environment, url, proxy):
    assert resolve(environment, base_url=url).proxy == proxy


def test_all_wrong_settings_are_named_together():
    with pytest.raises(ConfigurationError) as caught:
        resolve(base_url="host", timeout=0, max_retries=-1)
    assert all(word in str(caught.value) for word in ("base_url", "timeout", "max_retries"))


def test_max_retries_counts_for_both_policies():
    config = resolve(max_retries=3)
    assert (config.retry.max_retries, config.submit_retry.max_retries) == (3, 3)
    assert config.submit_retry.max_elapsed == 300


def test_config_cannot_be_changed():
    config = resolve()
    with pytest.raises(AttributeError):
        config.base_url = "http://other"
    with pytest.raises(TypeError):
        config.headers["x"] = "y"


def test_timeout_takes_seconds_or_the_official_object():
    assert (resolve().timeout, resolve().connect_timeout) == (60.0, 5.0)
    assert (resolve(timeout=7).timeout, resolve(timeout=7).connect_timeout) == (7, 5.0)
    both = resolve(timeout=tinkex.Timeout(30.0, connect=2.0))
    assert (both.timeout, both.connect_timeout) == (30.0, 2.0)
    endless = resolve(timeout=tinkex.Timeout(None))
    assert (endless.timeout, endless.connect_timeout) == (60.0, 5.0)


@pytest.mark.parametrize("timeout", [0, -1, True, "5", float("inf"), float("nan")])
def test_timeout_that_is_no_time_is_refused(timeout):
    with pytest.raises(ConfigurationError, match="timeout"):
        resolve(timeout=timeout)
