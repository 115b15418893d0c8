"""A foreign server as a back end, over real HTTP: served, or failing in every way we know of."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import uvicorn
from mesh_processor import MODEL, Mesh, backend_of, message_of, pieces_of, request_of, told
from patience import until
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from tinkex._clock import SystemClock
from tinkex.errors import (
    APIStatusError,
    BadRequestError,
    ConfigurationError,
    EngineBusyError,
    EngineError,
    NotFoundError,
    UnsupportedError,
)
from tinkex.mesh.api.completion import ChatMessage
from tinkex.mesh.processing.backend import Job
from tinkex.mesh.processing.openai_backend import OpenAIBackend, OpenAIBackendConfig
from tinkex.mesh.workers.serving.bounds import cost_of
from tinkex.mesh.workers.serving.relay import Relay
from tinkex.openai_api import (
    ChatPrompt,
    CompletionRequest,
    ModelCard,
    OpenAIRoutes,
    TextPrompt,
    TokenPrompt,
)
from tinkex.openai_api.refusal import is_context_length_exceeded
from tinkex.testing import VirtualClock

HI = {"role": "user", "content": "What is 3 plus 4?"}
CODE = f"{' ' * 16}pass\n" * 1000
"""More bytes than four for each token of the model's context."""


class Foreign:
    """A server that says what a test tells it: events, and bytes as they are."""

    def __init__(self):
        self.bodies = []
        self.keys = []
        self.status = 200
        self.headers = {}
        self.refusal = '{"error": {"message": "no"}}'
        self.say = [text("Good"), text("bye"), text("", reason="stop"), usage(3), b"[DONE]"]
        self.gate = asyncio.Event()
        self.gate.set()
        self.before = self.gate.wait
        """Awaited before each event."""
        self.sent = 0

    async def models(self, request):
        self.keys.append(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [{"id": "llama"}]})

    async def complete(self, request):
        self.bodies.append((request.url.path, json.loads(await request.body())))
        if self.status != 200:
            return Response(self.refusal, self.status, self.headers)

        async def events():
            for one in self.say:
                await self.before()
                self.sent += 1
                yield one if one.startswith((b"raw:", b":")) else b"data: " + one + b"\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


def text(words, *, reason=None, chat=True, **delta):
    choice = {"delta": {"content": words, **delta}} if chat else {"text": words}
    return json.dumps({"choices": [{"index": 0, "finish_reason": reason, **choice}]}).encode()


def usage(tokens, cached=0, prompt=9):
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    counts = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return json.dumps({"choices": [], "usage": counts | details}).encode()


@asynccontextmanager
async def listening(app):
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn sets no event
            await asyncio.sleep(0.005)  # noqa: TID251 - a real server
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        server.force_exit = True
        await serving


@pytest.fixture
async def foreign():
    made = Foreign()
    made.app = Starlette(
        routes=[
            Route("/v1/models", made.models),
            Route("/v1/chat/completions", made.complete, methods=["POST"]),
            Route("/v1/completions", made.complete, methods=["POST"]),
        ]
    )
    async with listening(made.app) as made.url:
        yield made
        made.gate.set()


@pytest.fixture
async def backend(foreign):
    faults = []
    config = OpenAIBackendConfig(url=foreign.url, model="llama", api_key="k-1", slots=4)
    made = OpenAIBackend(config, clock=VirtualClock(), on_fault=faults.append)
    await made.start()
    yield made
    await made.stop()
    assert faults == []


def chat(**fields):
    fields = {"model": "llama", "max_tokens": 20, "seed": 5, **fields}
    return CompletionRequest(prompt=fields.pop("prompt", ChatPrompt(messages=[HI])), **fields)


async def ask(backend, **fields):
    job = {name: fields.pop(name) for name in ("resume", "adapter") if name in fields}
    run = await backend.begin(Job(request=chat(**fields), account="ada", **job))
    try:
        async with asyncio.timeout(20):
            return await pieces_of(run)
    finally:
        run.cancel()


async def test_stream_becomes_pieces_and_says_that_it_is_not_deterministic(foreign, backend):
    run = await backend.begin(Job(request=chat(stop=("x",)), account="ada"))
    assert run.prompt_tokens == 0  # nobody knows yet
    words, tokens, reason = told(await pieces_of(run))
    assert (words, tokens, reason) == ("Goodbye", [(-1, None)] * 3, "stop")
    assert not run.deterministic
    assert run.prompt_tokens == 9  # as the server counts
    path, body = foreign.bodies[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [HI]
    assert (body["seed"], body["stop"], body["stream"]) == (5, ["x"], True)
    assert foreign.keys == ["Bearer k-1"]


async def test_each_completion_is_asked_for_by_itself(foreign, backend):
    foreign.say = [text("a", chat=False, reason="length"), usage(1, cached=2), b"[DONE]"]
    pieces = await ask(backend, n=3, prompt=TextPrompt("Once"))
    assert [told(pieces, index)[0] for index in range(3)] == ["a"] * 3
    assert sorted(body["seed"] for _, body in foreign.bodies) == [5, 6, 7]
    assert {path for path, _ in foreign.bodies} == {"/v1/completions"}


async def test_what_nobody_asked_for_is_left_to_the_servers_own_defaults(foreign, backend):
    await ask(backend, seed=5, seed_drawn=True)
    assert not {"temperature", "top_p", "seed"} & foreign.bodies[0][1].keys()


async def test_what_is_asked_for_is_told_though_it_is_the_usual(foreign, backend):
    await ask(backend, temperature=1.0, top_p=1.0, seed=0)
    _, body = foreign.bodies[0]
    assert (body["temperature"], body["top_p"], body["seed"]) == (1.0, 1.0, 0)


async def test_several_completions_have_seeds_though_nobody_gave_one(foreign, backend):
    """A server may have one seed for all that name none: they would be one and the same."""
    await ask(backend, n=3, seed=5, seed_drawn=True)
    assert sorted(body["seed"] for _, body in foreign.bodies) == [5, 6, 7]


async def test_calls_of_tools_come_with_the_end(foreign, backend):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    first = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a"'}}
    second = {"index": 0, "function": {"arguments": ": 1}"}}
    foreign.say = [
        text("", tool_calls=[first]),
        text("", tool_calls=[second], reason="tool_calls"),
        b"[DONE]",
    ]
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
        ],
    }
    pieces = await ask(backend, prompt=ChatPrompt(messages=[HI, called], tools=[tool]))
    (call,) = pieces[-1].tool_calls
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    assert pieces[-1].finish_reason == "tool_calls"
    sent = foreign.bodies[0][1]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(sent) == {"a": 1}


async def test_call_that_is_cut_off_is_no_call_to_be_made(foreign, backend):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"index": 0, "id": "c", "function": {"name": "add", "arguments": '{"a"'}}
    foreign.say = [text("", tool_calls=[call], reason="length"), b"[DONE]"]
    pieces = await ask(backend, prompt=ChatPrompt(messages=[HI], tools=[tool]))
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].tool_calls[0].arguments == '{"a"'


@pytest.mark.parametrize("number", [{"index": 0}, {"index": None}, {}], ids=str)
async def test_calls_that_a_server_does_not_number_are_told_apart(foreign, backend, number):
    """As some do: each of several calls has the number 0, or none."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    foreign.say = [
        text("", tool_calls=[{**number, "id": f"c{one}", "function": function}])
        for one, function in enumerate(
            ({"name": "add", "arguments": '{"a": 1}'}, {"name": "sub", "arguments": "{}"})
        )
    ]
    foreign.say[1:1] = [text("", tool_calls=[{**number, "function": {"arguments": " "}}])]
    foreign.say += [text("", reason="tool_calls"), b"[DONE]"]
    pieces = await ask(backend, prompt=ChatPrompt(messages=[HI], tools=[tool]))
    calls = [(call.name, call.arguments) for call in pieces[-1].tool_calls]
    assert calls == [("add", '{"a": 1} '), ("sub", "{}")]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"resume": [[1]]}, UnsupportedError, "gone on"),
        ({"adapter": "ab"}, UnsupportedError, "adapter"),
        ({"echo": True}, UnsupportedError, "echo"),
        ({"prompt_logprobs": True}, UnsupportedError, "prompt_logprobs"),
        ({"top_logprobs": 2}, UnsupportedError, "logprobs"),
        ({"top_k": 5}, UnsupportedError, "top_k"),
        ({"prompt": TokenPrompt([1])}, UnsupportedError, "token ids"),
        ({"prompt": ChatPrompt(messages=[HI], continue_last=True)}, UnsupportedError, "last"),
        ({"prompt": ChatPrompt(messages=[HI], options={"thinking": 1})}, UnsupportedError, "think"),
        ({"model": "other"}, NotFoundError, "runs 'llama'"),
    ],
)
async def test_what_such_a_server_may_not_keep_to_is_refused_by_name(
    foreign, backend, fields, error, message
):
    with pytest.raises(error, match=message):
        await ask(backend, **fields)
    assert foreign.bodies == []
    with pytest.raises(UnsupportedError):
        await backend.load_adapter("ab" * 32, Path("x"))


GARBAGE = {
    "no JSON": [b"{"],
    "no object": [b"[1]"],
    "another shape": [b'{"choices": [{"delta": {"content": 5}}]}'],
    "an unknown reason": [text("a", reason="because")],
    "an error in the stream": [b'{"error": {"message": "out of memory"}}'],
    "an error beside a choice": [json.dumps({"error": "no", "choices": [{"delta": {}}]}).encode()],
    "broken off": [text("a")],
    "more than was asked for": [text("a")] * 21,
    "negative tokens": [text("a", reason="stop"), usage(-1), b"[DONE]"],
    "calls where there is no tool": [text("", tool_calls=[{"function": {"name": "f"}}])],
    "a call that does not come": [text("a", reason="tool_calls"), b"[DONE]"],
    "a line without an end": [b"raw:" + b"x" * 2**21],
    "deep nesting": [b"[" * 100_000],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_told_and_nothing_of_it_is_counted(foreign, backend, name):
    foreign.say = GARBAGE[name]
    with pytest.raises(EngineError, match="behind this processor"):
        await ask(backend)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        ({"error": {"code": 400, "message": "too long"}}, BadRequestError, "too long"),
        ({"object": "error", "code": 400, "message": "too long"}, BadRequestError, "too long"),
        ({"error": {"code": 429, "message": "later"}}, EngineBusyError, "busy"),
        ({"error": "unexpected end"}, EngineError, "mid-stream"),
        ({"error": {"code": "server_error", "message": "x"}}, EngineError, "mid-stream"),
    ],
)
async def test_error_in_the_stream_is_the_error_that_it_is(foreign, backend, event, error, message):
    foreign.say = [text("a"), json.dumps(event).encode()]
    with pytest.raises(error, match=message):
        await ask(backend)


async def test_filtered_completion_says_so(foreign, backend):
    foreign.say = [text("a"), text("", reason="content_filter"), b"[DONE]"]
    with pytest.raises(BadRequestError, match="filter") as caught:
        await ask(backend)
    assert caught.value.body["code"] == "content_filter"


@pytest.mark.parametrize("ends", ["eos_token", "stop_sequence"])
async def test_odd_words_of_servers_are_understood(foreign, backend, ends):
    """An empty reason, counts that are none, no error: all before the true end."""
    odd = {"error": None, "usage": {"completion_tokens": None}}
    begins = json.dumps({"choices": [{"delta": {"content": "a"}, "finish_reason": ""}], **odd})
    foreign.say = [begins.encode(), text("b", reason=ends), usage(2), b"[DONE]"]
    words, tokens, reason = told(await ask(backend))
    assert (words, len(tokens), reason) == ("ab", 2, "stop")


@pytest.mark.parametrize(
    ("parts", "words"),
    [(("a\ud83d", "\ude00b"), "a😀b"), (("\ud83d", "b"), "\N{REPLACEMENT CHARACTER}b")],
)
async def test_characters_that_are_cut_in_two_are_joined(foreign, backend, parts, words):
    foreign.say = [*map(text, parts), text("", reason="stop"), b"[DONE]"]
    assert told(await ask(backend))[0] == words


@asynccontextmanager
async def hanging_up(replies):
    """A server that says its models and replies, then hangs up at each request but new ones'."""
    heads = []

    async def answer(reader, writer):
        for _ in range(replies):
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head.split(b" ", 1)[0])
            size = next((x for x in head.lower().split(b"\r\n") if b"content-length" in x), b":0")
            await reader.readexactly(int(size.split(b":")[1]))
            said = b'{"data": [{"id": "llama"}]}'
            if heads[-1] == b"POST":
                said = b"".join(b"data: " + one + b"\n\n" for one in Foreign().say)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(said) + said)
        await reader.readuntil(b"\r\n\r\n")
        heads.append(b"unread")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield heads, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def test_request_on_a_connection_that_is_closed_just_then_is_sent_anew():
    """Servers close kept connections after some seconds: vLLM, llama.cpp, after five."""
    async with hanging_up(replies=1) as (heads, url):
        config = OpenAIBackendConfig(url=url, model="llama")
        backend = OpenAIBackend(config, clock=SystemClock(), on_fault=pytest.fail)
        await backend.start()
        assert told(await ask(backend))[0] == "Goodbye"
        assert heads == [b"GET", b"unread", b"POST"]
        await backend.stop()


async def test_server_that_hangs_up_at_a_new_connection_is_asked_once(foreign, backend):
    async with hanging_up(replies=0) as (heads, url):
        backend._http.base_url = url
        with pytest.raises(EngineError, match="lost"):
            await ask(backend)
        assert heads == [b"unread"]


async def test_busy_server_says_when_to_come_back(foreign, backend):
    foreign.status, foreign.headers = 429, {"retry-after": "7"}
    with pytest.raises(EngineBusyError) as caught:
        await ask(backend)
    assert caught.value.retry_after_ms == 7000


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, BadRequestError),
        (401, EngineError),
        (404, EngineError),
        (429, EngineBusyError),
        (500, EngineError),
        (503, EngineBusyError),
        (302, EngineError),
    ],
)
async def test_refusals_become_the_errors_that_they_are(foreign, backend, status, error):
    foreign.status = status
    with pytest.raises(error) as raised:
        await ask(backend)
    assert isinstance(raised.value, APIStatusError) == (status == 400)


TOO_LONG = {
    "vLLM": "This model's maximum context length is 4096 tokens. However, you requested 4600",
    "vLLM, newer": "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's "
    "maximum context length is 4096 tokens and your request has 4000 input tokens",
    "vLLM's engine": "The decoder prompt (length 5000) is longer than the maximum model length of",
    "llama.cpp": "the request exceeds the available context size, try increasing it",
    "SGLang": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
}


@pytest.mark.parametrize("name", TOO_LONG)
@pytest.mark.parametrize("in_stream", [True, False], ids=["in a stream", "at once"])
async def test_refusal_of_what_is_too_long_is_told_as_such(foreign, backend, name, in_stream):
    """Programs look for OpenAI's code and shorten; gateways, for a longer context."""
    said = {"error": {"message": TOO_LONG[name], "type": "BadRequestError", "code": 400}}
    if in_stream:
        foreign.say = [json.dumps(said).encode()]
    else:
        foreign.status, foreign.refusal = 400, json.dumps(said)
    with pytest.raises(BadRequestError) as refused:
        await ask(backend)
    assert TOO_LONG[name] in str(refused.value)
    assert is_context_length_exceeded(refused.value)


async def test_other_refusal_is_not_told_as_too_long(foreign, backend):
    foreign.status, foreign.refusal = 400, '{"error": {"message": "no tools: context is closed"}}'
    with pytest.raises(BadRequestError) as refused:
        await ask(backend)
    assert not is_context_length_exceeded(refused.value)


async def test_server_that_hangs_gives_signs_of_life_and_then_up(foreign, backend):
    foreign.gate.clear()
    run = await backend.begin(Job(request=chat(), account="ada"))
    seen = []
    with pytest.raises(EngineError, match="says nothing"):
        await _read_while_time_passes(run, backend._timers._clock, seen)
    assert seen == [None] * 29
    run.cancel()


async def _read_while_time_passes(run, clock, seen):
    pieces = run.pieces()
    while True:
        seen.append(await _next_while_time_passes(pieces, clock))


async def _next_while_time_passes(pieces, clock):
    waiting = asyncio.ensure_future(anext(pieces))
    while not waiting.done():
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
        clock.advance(5)
    return await waiting


UNSEEN = {
    "a comment": b": ping\n\n",
    "no text": text(""),
    "thinking": text("", reasoning="hm"),
    "a part of a call": text("", tool_calls=[{"index": 0, "function": {"arguments": " "}}]),
}


@pytest.mark.parametrize("name", UNSEEN)
async def test_server_from_which_anything_comes_is_waited_for(foreign, backend, name):
    """However long: a call of a tool may be a whole file."""
    went_on = asyncio.Semaphore(0)
    foreign.before = went_on.acquire
    foreign.say = [UNSEEN[name]] * 5 + [text("Hi", reason="stop"), usage(6), b"[DONE]"]
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    prompt = ChatPrompt(messages=[HI], tools=[tool])
    run = await backend.begin(Job(request=chat(prompt=prompt), account="ada"))
    pieces, clock = run.pieces(), backend._timers._clock
    for sent in range(1, 6):
        went_on.release()
        await until(lambda: foreign.sent == sent and run._is_heard)  # noqa: B023 - awaited here
        for _ in range(20):
            assert await _next_while_time_passes(pieces, clock) is None
    for _ in range(3):
        went_on.release()
    async with asyncio.timeout(20):
        assert (await anext(pieces)).text == "Hi"
    run.cancel()


async def test_slow_reader_holds_the_server_up(foreign, backend):
    foreign.say = [text("word " * 2000)] * 4000
    run = await backend.begin(Job(request=chat(max_tokens=4000), account="ada"))
    await until(run._unread.full)
    for _ in range(30):
        await asyncio.sleep(0.01)  # noqa: TID251 - a real server, which would go on sending
    assert foreign.sent < 4000
    assert run._unread.qsize() == 64
    run.cancel()


async def test_cancelled_run_closes_its_stream(foreign, backend):
    foreign.say = [text("a")] + [b"raw: " * 2**14] * 2000
    run = await backend.begin(Job(request=chat(), account="ada"))
    assert (await anext(run.pieces())).text == "a"
    foreign.gate.clear()
    run.cancel()
    await asyncio.wait_for(backend._tasks.finished(), 20)


async def test_server_without_the_model_or_without_an_answer_is_told_at_the_start(foreign):
    for url, model, message in (
        (foreign.url, "gemma", "llama"),
        ("http://127.0.0.1:9/v1", "llama", "list its models"),
        (foreign.url + "/nowhere", "llama", "list its models"),
    ):
        config = OpenAIBackendConfig(url=url, model=model)
        made = OpenAIBackend(config, clock=SystemClock(), on_fault=lambda error: None)
        with pytest.raises(ConfigurationError, match=message):
            await made.start()
        with pytest.raises(EngineError, match="stopped"):
            await made.begin(Job(request=chat(model=model), account="ada"))


async def test_server_of_this_machine_is_asked_past_the_proxy_for_others(foreign, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    config = OpenAIBackendConfig(url=foreign.url, model="llama")
    made = OpenAIBackend(config, clock=SystemClock(), on_fault=pytest.fail)
    await made.start()
    assert told(await ask(made))[0] == "Goodbye"
    await made.stop()


class Own:
    """Our own API over our own engine."""

    def __init__(self, inner):
        self.inner = inner

    async def models(self, caller):
        return [await self.model(caller, MODEL)]

    async def model(self, caller, name):
        return ModelCard(
            name=name, created=1, owned_by="t", base_model=name, max_context_length=128
        )

    async def complete(self, caller, request):
        run = await self.inner.begin(Job(request=request, account=caller))
        run.request_id = "r-1"
        return run


async def test_our_own_api_as_a_back_end_gives_what_the_engine_gives():
    engine = backend_of()
    await engine.start()
    routes = OpenAIRoutes(Own(engine), lambda _: "ada", SystemClock()).routes()
    async with listening(Starlette(routes=[Mount("/v1", routes=routes)])) as url:
        config = OpenAIBackendConfig(url=url, model=MODEL, name="mine")
        made = OpenAIBackend(config, clock=SystemClock(), on_fault=pytest.fail)
        await made.start()
        request = request_of(max_tokens=30)
        own = told(await pieces_of(await engine.begin(Job(request=request, account="ada"))))
        run = await made.begin(Job(request=replace(request, model="mine"), account="ada"))
        found = told(await pieces_of(run))
        await made.stop()
    await engine.stop()
    assert (found[0], len(found[1]), found[2]) == (own[0], len(own[1]), own[2])


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000/v1", "http://host:port/v1", "http://[::1/v1", "http:///v1", "http://a:99999/"],
)
def test_url_that_is_none_is_refused_by_name(url):
    with pytest.raises(ConfigurationError, match=r"url is .*give http"):
        OpenAIBackendConfig(url=url, model="llama")


def test_key_that_no_header_can_hold_is_refused_and_not_shown():
    with pytest.raises(ConfigurationError, match="key") as refused:
        OpenAIBackendConfig(url="http://127.0.0.1/v1", model="llama", api_key="secret-\u2026")
    assert "secret" not in str(refused.value)


def test_settings_that_cannot_be_are_told_at_once_and_no_key_is_shown():
    with pytest.raises(ConfigurationError, match=r"url.*model.*context_length.*slots.*idle"):
        OpenAIBackendConfig(url="x", model="", context_length=0, slots=0, idle_timeout_s=0)
    assert "secret" not in repr(OpenAIBackendConfig(url="http://x", model="m", api_key="secret"))


async def test_prompt_that_the_server_does_not_count_is_estimated(foreign, backend):
    foreign.say = [text("a", reason="stop"), b"[DONE]"]
    run = await backend.begin(Job(request=chat(), account="ada"))
    await pieces_of(run)
    assert run.prompt_tokens == await backend.count_tokens(chat()) == 5


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("said", [(), (usage(6),)], ids=["uncounted", "counted"])
async def test_thinking_counts_and_is_not_shown(foreign, backend, field, said):
    thoughts = [text("", **{field: word}) for word in ("3", " and", " 4")]
    foreign.say = [*thoughts, text("7"), text(".", reason="stop"), *said, b"[DONE]"]
    words, tokens, reason = told(await ask(backend, max_tokens=6))
    assert (words, len(tokens), reason) == ("7.", 6 if said else 5, "stop")


@pytest.mark.parametrize(("most", "counted"), [(20, 17), (10, 10)])
async def test_servers_count_is_believed_as_far_as_there_are_bytes(foreign, backend, most, counted):
    """One that thinks in secret counts more than it shows; its reply is good all the same."""
    foreign.say = [text("7", reason="stop"), usage(1000), b"[DONE]"]
    words, tokens, reason = told(await ask(backend, max_tokens=most))
    assert (words, len(tokens), reason) == ("7", counted, "stop")


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"max_tokens": None}, None),
        ({"max_tokens": 4097, "as_context_allows": True}, None),
        ({"max_tokens": 3900, "as_context_allows": True}, None),
        ({"max_tokens": 3000, "as_context_allows": True}, 3000),
        ({"max_tokens": 3900}, 3900),
    ],
)
async def test_server_is_told_max_tokens_where_they_surely_fit_or_must(
    foreign, backend, fields, sent
):
    """It alone knows what room there is: vLLM refuses a number that does not fit."""
    words, _, reason = told(await ask(backend, **fields))
    assert (words, reason) == ("Goodbye", "stop")
    assert foreign.bodies[0][1].get("max_tokens") == sent


@pytest.mark.parametrize(
    "prompt", [ChatPrompt(messages=[HI | {"content": CODE}]), TextPrompt(CODE)]
)
async def test_estimate_of_a_prompt_shortens_no_reply(foreign, backend, prompt):
    """Of code that is deeply indented, say: a token has more bytes than usual there."""
    is_chat = isinstance(prompt, ChatPrompt)
    words = [text("a", chat=is_chat)] * 19 + [text("b", chat=is_chat, reason="stop")]
    foreign.say = [*words, usage(20, prompt=2700), b"[DONE]"]
    words, tokens, reason = told(await ask(backend, prompt=prompt))
    assert (words, len(tokens), reason) == ("a" * 19 + "b", 20, "stop")
    assert foreign.bodies[0][1]["max_tokens"] == 20


@pytest.mark.parametrize("prompt", [ChatPrompt(messages=[HI]), TextPrompt("Once")])
async def test_more_tokens_than_the_context_has_are_refused_as_the_engine_does(backend, prompt):
    with pytest.raises(BadRequestError, match="4096 tokens, and 4097") as refused:
        await ask(backend, prompt=prompt, max_tokens=4097)
    assert refused.value.body["code"] == "context_length_exceeded"


async def test_chat_that_the_server_does_not_end_is_cut_off_where_the_context_is_full(foreign):
    """As Ollama's: it forgets the beginning, and goes on."""
    foreign.say = [text("a")] * 60 + [text("", reason="stop"), usage(60), b"[DONE]"]
    config = OpenAIBackendConfig(url=foreign.url, model="llama", context_length=50)
    made = OpenAIBackend(config, clock=VirtualClock(), on_fault=pytest.fail)
    await made.start()
    words, tokens, reason = told(await ask(made, max_tokens=None))
    await made.stop()
    assert (words, len(tokens), reason) == ("a" * 50, 50, "length")


async def test_plain_completion_has_max_tokens_always(foreign, backend):
    """Servers that are told none make 16 (vLLM)."""
    foreign.say = [text("a", chat=False, reason="length"), usage(1), b"[DONE]"]
    await ask(backend, prompt=TextPrompt("Once"), max_tokens=None)
    assert foreign.bodies[0][1]["max_tokens"] == 4096


@pytest.mark.parametrize("chat", [False, True])
async def test_template_of_the_servers_own_makes_no_processor_a_liar(foreign, tmp_path, chat):
    """As Ollama's: a system prompt of the model's, around whatever it is asked."""
    foreign.say = [
        text("a", chat=chat, reason="stop"),
        usage(1, prompt=1900, cached=1890),
        b"[DONE]",
    ]
    faults = []
    config = OpenAIBackendConfig(url=foreign.url, model="llama", context_length=2000)
    backend = OpenAIBackend(config, clock=VirtualClock(), on_fault=faults.append)
    backend.faults = faults
    message = message_of("Hi", model="llama")
    if chat:
        message = msgspec.structs.replace(message, prompt=ChatMessage([HI]))
    cost = cost_of(message, 2000)
    assert cost.prompt < 1900
    async with Mesh() as mesh:
        await mesh.begin(tmp_path, backend=backend)
        begun, *pieces, ended = await mesh.ask(mesh.work(message))
    relay = Relay(message, cost, 2000)
    relay.check_begun(begun)
    relay.begin(begun)
    assert [relay.take(piece) for piece in pieces] == [(piece,) for piece in pieces]
    relay.end(ended)
    assert relay.prompt_tokens == cost.prompt
