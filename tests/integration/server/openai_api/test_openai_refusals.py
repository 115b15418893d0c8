"""What is refused, seen with the official `openai` package, and what ends when a client goes."""

import asyncio

import httpx
import openai
import pytest
from server_support import KEY, OTHER_KEY, settle

pytestmark = pytest.mark.interop

SPROUT = "tinkex/sprout"
ASK = [{"role": "user", "content": "What is 3 plus 4?"}]
CHAT = {"model": SPROUT, "messages": ASK, "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def on_the_loop(server, work):
    return asyncio.run_coroutine_threadsafe(work, server.loop).result(20)


def refused(error, create, **asked):
    with pytest.raises(error) as caught:
        create(**asked)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        (
            {"extra_body": {"chat_template_kwargs": {"thinking": True}}},
            "chat_template_kwargs.thinking",
        ),
        (
            {"extra_body": {"chat_template_kwargs": {"messages": []}}},
            "chat_template_kwargs.messages",
        ),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"extra_body": {"min_p": 0.1}}, "min_p"),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(client, fields, param):
    error = refused(openai.BadRequestError, client.chat.completions.create, **CHAT, **fields)
    assert error.param == param
    assert error.code in {"unsupported_parameter", "unknown_parameter"}
    assert error.type == "invalid_request_error"


def test_tools_and_format_that_ask_for_nothing_are_taken(client):
    answer = client.chat.completions.create(
        **CHAT, tools=[TOOL], tool_choice="none", response_format={"type": "text"}, seed=1
    )
    plain = client.chat.completions.create(**CHAT, seed=1)
    assert answer.choices[0].message == plain.choices[0].message


def test_context_that_is_too_short_is_told_with_its_numbers(client):
    create = client.completions.create
    long = refused(openai.BadRequestError, create, model=SPROUT, prompt=[5] * 2049)
    assert (long.code, long.param) == ("context_length_exceeded", "prompt")
    full = refused(openai.BadRequestError, create, model=SPROUT, prompt=[5] * 2000, max_tokens=50)
    assert (full.code, full.param) == ("context_length_exceeded", "max_tokens")
    assert "leaves 49" in str(full)
    assert create(model=SPROUT, prompt=[5] * 2040, max_tokens=9).usage.prompt_tokens == 2040


@pytest.mark.parametrize(
    "name", ["nobody/nothing", "tinker://run/sampler_weights/x", "tinker://x", "a;b", "", ";"]
)
def test_model_that_is_not_there_is_not_found(client, name):
    for stream in (False, True):
        error = refused(
            openai.NotFoundError,
            client.chat.completions.create,
            **{**CHAT, "model": name, "stream": stream},
        )
        assert error.code == "model_not_found"


def test_checkpoint_is_its_owners_alone(client, checkpoint):
    other = client.with_options(api_key=OTHER_KEY)
    error = refused(
        openai.NotFoundError, other.chat.completions.create, **{**CHAT, "model": checkpoint}
    )
    assert error.code == "model_not_found"


@pytest.mark.parametrize("prompt", ["", [5, 2**40], [-1], [5, 100_000]])
def test_prompt_that_is_none_is_refused(client, prompt):
    error = refused(openai.BadRequestError, client.completions.create, model=SPROUT, prompt=prompt)
    assert error.type == "invalid_request_error"


def test_best_of_is_refused_where_it_makes_no_sense(client):
    create = client.completions.create
    asked = {"model": SPROUT, "prompt": "a"}
    assert refused(openai.BadRequestError, create, **asked, best_of=1, n=2).param == "best_of"
    assert refused(openai.BadRequestError, create, **asked, best_of=2, stream=True).param == (
        "best_of"
    )
    assert refused(openai.BadRequestError, create, **asked, max_tokens=0).param == "max_tokens"
    options = {"include_usage": True}
    assert refused(openai.BadRequestError, create, **asked, stream_options=options).param == (
        "stream_options"
    )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/embeddings", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/v1/x", 404)],
)
def test_error_before_a_route_has_openais_form(server, method, path, status):
    headers = {"authorization": f"Bearer {KEY}"}
    reply = httpx.request(method, server.url + path, headers=headers)
    assert reply.status_code == status
    assert path in reply.json()["error"]["message"]


def test_body_that_is_no_json_is_refused(server):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    for body in (b"", b"{", b"[]", b'"text"'):
        reply = httpx.post(f"{server.url}/v1/completions", headers=headers, content=body)
        assert reply.status_code == 400, body
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_full_server_asks_to_come_again(server, client, monkeypatch):
    monkeypatch.setattr(server.services.futures, "_max_open", 0)
    for stream in (False, True):
        error = refused(
            openai.RateLimitError, client.chat.completions.create, **CHAT, stream=stream
        )
        assert error.code == "rate_limit_exceeded"
        assert error.response.headers["retry-after"] == "1"


async def ended(server):
    """Wait until the engine does nothing: (futures that are open, sampling work left)."""
    await settle()
    (base,) = server.services.bases
    futures = server.services.futures
    for future in list(futures._futures.values()):
        if not future.done:
            with futures.waiter(future, 15) as waiter:
                await waiter
    left = await base.jobs.call("test: last", lambda engine: engine.has_sampling_work())
    return futures.open_count, left


async def used(server):
    """Return what the key of these tests has used."""
    services = server.services
    key_id = services.accounts.authenticator.caller(KEY).key_id
    return await services.ledger.used(key_id)


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_hangs_up_ends_the_sampling(server, client, stream):
    body = {"model": SPROUT, "prompt": "Once", "max_tokens": 1900, "n": 16, "stream": stream}
    body["temperature"] = 2  # so hot, it does not end a story by itself
    headers = {"authorization": f"Bearer {KEY}"}
    assert on_the_loop(server, ended(server)) == (0, False)
    failed = on_the_loop(server, used(server)).failed_requests
    if stream:
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, headers=headers
        ) as reply:
            assert next(reply.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=0.5)
    assert on_the_loop(server, ended(server)) == (0, False)
    assert on_the_loop(server, used(server)).failed_requests == failed + 1
    assert client.completions.create(model=SPROUT, prompt="a").usage.prompt_tokens == 1


def test_what_is_sampled_counts_on_the_key(server, client):
    before = on_the_loop(server, used(server))
    usage = client.completions.create(model=SPROUT, prompt="One two", n=2, max_tokens=3).usage
    after = on_the_loop(server, used(server))
    assert after.sampled_tokens - before.sampled_tokens == usage.completion_tokens
    prompt = after.prefilled_tokens + after.cached_tokens
    assert prompt - before.prefilled_tokens - before.cached_tokens == usage.prompt_tokens
    assert after.requests - before.requests == 1
