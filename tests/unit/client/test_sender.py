"""One request and its answer, over a real socket: retries, typed errors, headers, secrets."""

import json
import pickle

import pytest
from scripted_tinker import API, KEY, JumpingClock, ok, scripted_peer, service

import tinkex as tinker
from tinkex.client.runtime import Runtime
from tinkex.errors import APIResponseValidationError, ConfigurationError, CredentialError
from tinkex.testing.server import PeerResponse

CAPABILITIES = f"{API}/get_server_capabilities"
MODELS = ok({"supported_models": [{"model_name": "m"}]})


@pytest.fixture
def peer():
    with scripted_peer() as running:
        yield running


def ask(peer, *answers, **settings):
    """Ask for the capabilities while the peer answers in turn; the sleeps between are returned."""
    clock = JumpingClock()
    peer.expect(CAPABILITIES, *answers, method="GET")
    with service(peer, runtime=Runtime(clock=clock), **settings) as client:
        found = client.get_server_capabilities()
    return found, clock.sleeps


def test_answer_is_read_as_its_type(peer):
    found, _ = ask(peer, MODELS)
    assert [model.model_name for model in found.supported_models] == ["m"]
    (request,) = peer.requests_to(CAPABILITIES)
    assert request.headers["x-api-key"] == KEY
    assert request.headers["user-agent"].startswith("tinkex/")
    assert request.headers["x-sdk-version"] == "0.38.0"
    assert "content-type" not in request.headers


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_passing_failure_is_tried_again_after_the_time_the_server_names(peer, status):
    _, sleeps = ask(peer, ok({"detail": "busy"}, status, retry_after="3"), MODELS)
    assert sleeps == [3.0]


def test_lost_connection_is_tried_again(peer):
    _, sleeps = ask(peer, PeerResponse(drop=True), PeerResponse(drop=True), MODELS)
    assert len(sleeps) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, tinker.BadRequestError),
        (401, tinker.AuthenticationError),
        (403, tinker.PermissionDeniedError),
        (404, tinker.NotFoundError),
        (422, tinker.UnprocessableEntityError),
    ],
)
def test_refusal_is_a_typed_error_in_the_words_of_the_server(peer, status, error):
    with pytest.raises(error, match="not like this") as caught:
        ask(peer, ok({"detail": "not like this"}, status, x_request_id="r-7"))
    assert caught.value.status_code == status
    assert caught.value.body == {"detail": "not like this"}
    assert caught.value.request_id == "r-7"


def test_refusal_survives_pickling_before_anybody_read_its_response(peer):
    """A pool of processes pickles what its workers raise."""
    with pytest.raises(tinker.NotFoundError) as caught:
        ask(peer, ok({"detail": "no such thing"}, 404))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (tinker.NotFoundError, str(caught.value))
    assert again.body == {"detail": "no such thing"}
    assert (again.response.status_code, again.response.json()) == (404, again.body)


def test_retries_end_and_raise_the_last_error(peer):
    with pytest.raises(tinker.InternalServerError) as caught:
        ask(peer, *[ok({"detail": "down"}, 503)] * 3, max_retries=2)
    assert caught.value.category == "server"


def test_rate_limit_error_says_when_to_come_back(peer):
    with pytest.raises(tinker.RateLimitError) as caught:
        ask(peer, ok({"detail": "slow"}, 429, retry_after="2"), max_retries=0)
    assert caught.value.retry_after_ms == 2000


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"[]", b'{"supported_models": 5}'])
def test_answer_of_another_form_is_a_typed_error(peer, body):
    """A2.4"""
    with pytest.raises(APIResponseValidationError, match="Tinker server"):
        ask(peer, PeerResponse(200, body))


def test_web_page_with_an_error_status_is_recognised(peer):
    with pytest.raises(tinker.NotFoundError, match="web page"):
        ask(peer, PeerResponse(404, b"<!doctype html>", content_type="text/html"))


def test_key_appears_in_no_error_and_no_repr(peer):
    """A2.5"""
    with pytest.raises(tinker.BadRequestError) as caught:
        ask(peer, ok({"detail": f"the key {KEY} is odd"}, 400))
    assert KEY not in str(caught.value)
    with service(peer) as client:
        assert KEY not in repr(client)
        assert KEY not in repr(client._connection.config)


def test_retries_share_their_idempotency_key_and_calls_do_not(peer):
    peer.expect(f"{API}/create_session", ok({}, 503))
    with service(peer) as client:
        peer.always(CAPABILITIES, MODELS, method="GET")
        client.create_sampling_client(base_model="m").result(10)
    first, second = peer.requests_to(f"{API}/create_session")
    other = peer.requests_to(f"{API}/create_sampling_session")[0]
    name = "x-idempotency-key"
    assert first.headers[name] == second.headers[name] != other.headers[name]


def test_server_without_the_api_is_named():
    from tinkex.testing.server import ScriptedServer

    with ScriptedServer() as peer:
        peer.expect(f"{API}/client/config", ok({"detail": "Not Found"}, 404))
        with service(peer) as client, pytest.raises(tinker.NotFoundError, match="no Tinker API"):
            client.create_sampling_client(base_model="m").result(10)


def test_server_that_is_not_there_is_a_connection_error():
    clock = JumpingClock()
    with (
        tinker.ServiceClient(
            base_url="http://127.0.0.1:9",
            api_key=KEY,
            max_retries=1,
            runtime=Runtime(clock=clock),
        ) as client,
        pytest.raises(tinker.APIConnectionError, match="Is the server running"),
    ):
        client.get_server_capabilities()
    assert len(clock.sleeps) == 1


@pytest.mark.parametrize("key", ["", "sk-wrong", "tml-with space", "tml-ümlaut"])
def test_key_of_another_form_is_refused_before_any_request(key, monkeypatch):
    for name in ("TINKER_API_KEY", "TINKEX_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(CredentialError, match="key"):
        tinker.ServiceClient(base_url="http://127.0.0.1:9", api_key=key)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ConfigurationError, match=r"base_url.*timeout.*max_retries"):
        tinker.ServiceClient(base_url="ftp://x", api_key=KEY, timeout=-1, max_retries=-1)


def test_clients_with_different_settings_do_not_mix(monkeypatch):
    """A2.1: nothing is read from the environment after a client is made."""
    with scripted_peer() as one, scripted_peer() as two:
        for peer in (one, two):
            peer.always(CAPABILITIES, MODELS, method="GET")
        with (
            service(one, api_key="tml-one-key") as a,
            service(two, api_key="tml-two-key", default_headers_overrides={"x-mine": "2"}) as b,
        ):
            monkeypatch.setenv("TINKER_API_KEY", "tml-later-key")
            monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
            for client in (a, b, a):
                client.get_server_capabilities()
        assert [r.headers["x-api-key"] for r in one.requests] == ["tml-one-key"] * 2
        assert [r.headers["x-api-key"] for r in two.requests] == ["tml-two-key"]
        assert [r.headers.get("x-mine") for r in one.requests + two.requests] == [None, None, "2"]


def test_session_carries_what_the_user_said(peer, monkeypatch):
    monkeypatch.setenv("TINKER_TAGS", "a, b,a")
    with service(peer, user_metadata={"k": "v"}, project_id="p-1", display_name="mine") as client:
        client.create_sampling_client(base_model="m").result(10)
    (request,) = peer.requests_to(f"{API}/create_session")
    assert json.loads(request.body) == {
        "tags": ["a", "b"],
        "user_metadata": {"k": "v"},
        "sdk_version": "0.38.0",
        "project_id": "p-1",
        "display_name": "mine",
        "type": "create_session",
    }


def test_headers_are_told_on_request_with_every_secret_masked(peer, caplog):
    caplog.set_level("DEBUG", logger="tinkex.http")
    ask(peer, MODELS, default_headers={"x-of-mine": "hidden-word"})
    told = caplog.text
    assert "sends GET /api/v1/get_server_capabilities" in told
    assert "gets 200 from /api/v1/get_server_capabilities" in told
    assert "x-sdk-version: 0.38.0" in told
    assert "content-type: application/json" in told
    assert "X-API-Key: [redacted]" in told or "x-api-key: [redacted]" in told
    assert "x-of-mine: [redacted]" in told
    assert KEY not in told
    assert "hidden-word" not in told


def test_headers_are_not_told_otherwise(peer, caplog):
    caplog.set_level("INFO")
    ask(peer, MODELS)
    assert "x-sdk-version" not in caplog.text
