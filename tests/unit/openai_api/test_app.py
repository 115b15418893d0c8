"""The routes over any completer: replies, events, errors, and ending what nobody waits for."""

import asyncio
import json
import threading
from functools import partial

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tinkex.errors import EngineError, InputError, StorageError, status_error
from tinkex.openai_api import (
    ChatPrompt,
    Piece,
    TextPrompt,
    Token,
    TokenPrompt,
    ToolCall,
    chat,
    completions,
)
from tinkex.openai_api.app import OpenAIRoutes
from tinkex.openai_api.batch import HOLD_S
from tinkex.openai_api.completion_types import CompletionsRequest
from tinkex.openai_api.completions import Completions
from tinkex.testing.clock import VirtualClock

HELLO = [{"role": "user", "content": "Hello"}]
CHAT, PLAIN = "/chat/completions", "/completions"


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    return [line.removeprefix("data: ") for line in lines]


async def test_models_are_those_of_the_completer(face):
    listed = (await face.get("/models")).json()
    assert listed["object"] == "list"
    assert listed["data"] == [(await face.get("/models/one")).json()]
    assert listed["data"][0]["owned_by"] == "somebody"
    missing = await face.get("/models/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_conversation_goes_to_the_completer_as_the_template_reads_it(face, completer, piece):
    completer.say(piece("Hi", finish_reason="stop"))
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": t} for t in ("be", "kind")]},
        {"role": "user", "content": "Hello", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    reply = await face.post(
        CHAT, messages=messages, tools=[tool], stop="x", max_completion_tokens=5, seed=3
    )
    assert reply.json()["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
    }
    (request,) = completer.requests
    assert isinstance(request.prompt, ChatPrompt)
    system, user, assistant, answer = request.prompt.messages
    assert system == {"role": "system", "content": "be\nkind"}
    assert user["name"] == "Ann"
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert answer["tool_call_id"] == "c1"
    assert request.prompt.tools == [tool]
    assert (request.stop, request.max_tokens, request.seed) == (("x",), 5, 3)


async def test_stream_tells_role_then_text_then_reason_then_usage(face, completer, piece):
    completer.say(piece("Hi"), None, piece(" you", finish_reason="length"))
    options = {"include_usage": True}
    response = await face.post(CHAT, messages=HELLO, stream=True, stream_options=options)
    assert ": still here\n\n" in response.text
    *chunks, done = events(response)
    assert done == "[DONE]"
    found = [json.loads(chunk) for chunk in chunks]
    assert [chunk["choices"][0]["delta"] for chunk in found[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "Hi"},
        {"content": " you"},
        {},
    ]
    assert found[3]["choices"][0]["finish_reason"] == "length"
    assert found[4]["usage"]["total_tokens"] == 9
    assert found[4]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert {chunk["id"] for chunk in found} == {"chatcmpl-req-1"}
    assert completer.begun[0].cancelled


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_of_tools_come_whole(face, completer, piece, stream):
    calls = (ToolCall("f", '{"a": 1}'), ToolCall("g", "{}"))
    completer.say(piece(finish_reason="tool_calls", tool_calls=calls))
    response = await face.post(CHAT, messages=HELLO, stream=stream)
    if stream:
        chunks = [json.loads(chunk) for chunk in events(response)[:-1]]
        found = chunks[1]["choices"][0]["delta"]["tool_calls"]
        assert [call["index"] for call in found] == [0, 1]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    else:
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        found = choice["message"]["tool_calls"]
    assert [call["function"] for call in found] == [
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert len({call["id"] for call in found}) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("calls", [(), (ToolCall("f", '{"a": 1}'),)], ids=["text", "call"])
async def test_reply_as_openais_package_writes_it_is_a_message_of_the_next_request(
    face, completer, piece, stream, calls
):
    reason = "tool_calls" if calls else "stop"
    completer.say(piece("" if calls else "Hi", finish_reason=reason, tool_calls=calls))
    response = await face.post(CHAT, messages=HELLO, stream=stream)
    if stream:
        joined = ChatCompletionStreamState()
        for chunk in events(response)[:-1]:
            joined.handle_chunk(ChatCompletionChunk.model_validate_json(chunk))
        reply = joined.get_final_completion()
    else:
        reply = ChatCompletion.model_validate_json(response.text)
    message = reply.choices[0].message.model_dump()
    completer.say(piece("Yes", finish_reason="stop"))
    again = await face.post(CHAT, messages=[*HELLO, message, *HELLO])
    assert again.status_code == 200, again.text
    told = completer.requests[-1].prompt.messages[1]
    assert told["content"] == ("" if calls else "Hi")
    if calls:
        (call,) = told["tool_calls"]
        assert call["function"] == {"name": "f", "arguments": {"a": 1}}
        assert set(call) == {"id", "type", "function"}


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["at once", "before a piece"])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InputError("bad"), 400, None),
        (status_error(422, "bad"), 400, None),
        (status_error(429, "busy", retry_after_ms=1500), 429, "rate_limit_exceeded"),
        (EngineError("broke"), 500, None),
    ],
)
async def test_error_before_any_text_is_a_reply(
    face, completer, path, stream, when, error, status, code
):
    completer.say(*([error] if when == "at once" else [None, error][1 if stream else 0 :]))
    asked = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    response = await face.post(path, **asked, stream=stream)
    assert response.status_code == status
    detail = response.json()["error"]
    assert detail["message"] == str(error)
    assert detail["code"] == code
    assert (
        detail["type"]
        == {
            400: "invalid_request_error",
            429: "rate_limit_error",
            500: "server_error",
        }[status]
    )
    if status == 429:
        assert response.headers["retry-after"] == "2"
        assert response.headers["retry-after-ms"] == "1500"
    assert all(script.cancelled for script in completer.begun)


@pytest.mark.parametrize("path", [CHAT, PLAIN])
async def test_error_in_a_stream_is_its_last_event(face, completer, piece, path):
    completer.say(piece("Hi"), EngineError("broke"))
    asked = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    *_, last = events(await face.post(path, **asked, stream=True))
    assert json.loads(last)["error"] == {
        "message": "broke",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert completer.begun[0].cancelled


async def test_what_is_no_answer_goes_on_to_who_mounted_the_routes(face, completer):
    completer.say(StorageError("disk full"))
    with pytest.raises(StorageError):
        await face.post(CHAT, messages=HELLO)


async def test_prompt_that_cannot_begin_takes_those_before_it_along(face, completer, piece):
    completer.say(piece("a", finish_reason="stop"))
    completer.say(InputError("too long"))
    response = await face.post(PLAIN, prompt=["a", "b"])
    assert response.status_code == 400
    assert completer.begun[0].cancelled


@pytest.mark.parametrize("stream", [False, True])
async def test_more_prompts_than_there_is_room_for_are_read_while_they_begin(
    face, completer, piece, stream
):
    """A completion keeps its place until it has been read to its end."""
    room, complete = asyncio.Semaphore(2), completer.complete

    async def when_there_is_room(caller, request):
        await room.acquire()
        script = await complete(caller, request)
        script.steps = _letting_go(script.steps, room)
        return script

    completer.complete = when_there_is_room
    for number in range(5):
        completer.say(piece(f"{number}"), None, piece("!", finish_reason="stop"))
    async with asyncio.timeout(20):
        response = await face.post(PLAIN, prompt=["x"] * 5, stream=stream)
    replies = [json.loads(one) for one in events(response)[:-1]] if stream else [response.json()]
    texts = [""] * 5
    for choice in (choice for reply in replies for choice in reply["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == [f"{number}!" for number in range(5)]
    assert all(script.cancelled for script in completer.begun)


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_beyond_what_may_be_in_progress_are_tried_again_as_others_end(
    face, completer, piece, stream
):
    room, complete = asyncio.Semaphore(2), completer.complete

    async def refused_while_full(caller, request):
        if room.locked():
            raise status_error(429, "too many in progress", retry_after_ms=1.0)
        await room.acquire()
        script = await complete(caller, request)
        script.steps = _letting_go(script.steps, room)
        return script

    completer.complete = refused_while_full
    for number in range(5):
        completer.say(piece(f"{number}"), None, piece("!", finish_reason="stop"))
    async with asyncio.timeout(20):
        response = await face.post(PLAIN, prompt=["x"] * 5, stream=stream)
    assert response.status_code == 200
    assert all(f'"{number}' in response.text for number in range(5))
    await room.acquire()
    await room.acquire()  # by somebody else, for ever
    refused = await face.post(PLAIN, prompt=["x"] * 5, stream=stream)
    assert refused.status_code == 429


async def test_stream_of_more_prompts_than_may_be_in_progress_begins_before_all_have(
    completer, piece
):
    """The last one may begin minutes later: a client would have given up."""
    room, complete, told = asyncio.Semaphore(1), completer.complete, asyncio.Event()

    async def refused_while_full(caller, request):
        if room.locked():
            raise status_error(429, "too many in progress", retry_after_ms=1.0)
        await room.acquire()
        script = await complete(caller, request)
        script.pieces = partial(_waiting, script.steps, room, told)
        return script

    completer.complete = refused_while_full
    for number in range(3):
        completer.say(piece(f"{number}"), piece("!", finish_reason="stop"))
    request = CompletionsRequest(model="one", prompt=["x"] * 3, stream=True)
    found = []
    async with asyncio.timeout(20):
        async for one in Completions(completer, VirtualClock()).events("me", request):
            told.set()  # nothing ends before
            found.append(one)
    texts = [json.loads(one[6:])["choices"][0]["text"] for one in found[:-1]]
    assert "".join(texts) == "0!1!2!"


async def test_stream_of_prompts_that_wait_for_room_begins_before_all_have(completer, piece):
    """As at a processor of a mesh, whose slots are taken: it is no refusal."""
    room, complete, told = asyncio.Semaphore(1), completer.complete, asyncio.Event()
    waits, clock = asyncio.Event(), VirtualClock()

    async def when_there_is_room(caller, request):
        if room.locked():
            waits.set()
        await room.acquire()
        script = await complete(caller, request)
        script.pieces = partial(_waiting, script.steps, room, told)
        return script

    completer.complete = when_there_is_room
    for number in range(3):
        completer.say(piece(f"{number}"), piece("!", finish_reason="stop"))
    request = CompletionsRequest(model="one", prompt=["x"] * 3, stream=True)
    stream = Completions(completer, clock).events("me", request)
    async with asyncio.timeout(20):
        first = asyncio.ensure_future(anext(stream))
        await waits.wait()
        clock.advance(HOLD_S)
        found = [await first]
        told.set()  # nothing ends before
        found += [one async for one in stream]
    texts = [json.loads(one[6:])["choices"][0]["text"] for one in found[:-1]]
    assert "".join(texts) == "0!1!2!"


async def test_prompt_that_is_refused_after_a_stream_has_begun_ends_it_with_the_error(
    completer, piece
):
    complete, asked = completer.complete, []

    async def refused_once(caller, request):
        asked.append(request)
        if len(asked) == 2:
            raise status_error(429, "too many in progress", retry_after_ms=1.0)
        return await complete(caller, request)

    completer.complete = refused_once
    completer.say(piece("a", finish_reason="stop"))
    completer.say(InputError("too long"))
    request = CompletionsRequest(model="one", prompt=["x", "y"], stream=True)
    stream = Completions(completer, VirtualClock()).events("me", request)
    assert json.loads((await anext(stream))[6:])["choices"][0]["text"] == "a"
    with pytest.raises(InputError):
        await anext(stream)


async def _waiting(steps, room, told):
    first, *rest = steps
    yield first
    await told.wait()
    for step in rest:
        yield step
    room.release()


def _letting_go(steps, room):
    yield from steps
    room.release()


@pytest.mark.parametrize("stream", [False, True])
async def test_prompt_that_is_refused_while_others_are_read_takes_all_along(
    face, completer, piece, stream
):
    for _ in range(2):
        completer.say(piece("a"), None, piece("b", finish_reason="stop"))
    completer.say(InputError("too long"))
    read, complete = asyncio.Event(), completer.complete

    async def refused_late(caller, request):
        if len(completer.begun) == 2:
            await read.wait()
        script = await complete(caller, request)
        script.steps = _telling(script.steps, read)
        return script

    completer.complete = refused_late
    async with asyncio.timeout(20):
        response = await face.post(PLAIN, prompt=["x"] * 3, stream=stream)
    assert response.status_code == 400
    assert [script.cancelled for script in completer.begun] == [True, True]


def _telling(steps, read):
    yield from steps
    read.set()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", [TextPrompt("text")]),
        (["a", "b"], [TextPrompt("a"), TextPrompt("b")]),
        ([1, 2], [TokenPrompt([1, 2])]),
        ([[1], [2, 3]], [TokenPrompt([1]), TokenPrompt([2, 3])]),
    ],
)
async def test_prompts_are_told_apart(face, completer, piece, prompt, expected):
    for _ in expected:
        completer.say(piece("x", finish_reason="stop"))
    response = await face.post(PLAIN, prompt=prompt)
    assert [request.prompt for request in completer.requests] == expected
    assert {request.max_tokens for request in completer.requests} == {16}
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(expected)))


@pytest.mark.parametrize(
    ("path", "stream", "heard"),
    [(CHAT, False, 0), (CHAT, True, 0), (CHAT, True, 1), (PLAIN, True, 0), (PLAIN, True, 1)],
)
async def test_client_that_hangs_up_ends_the_work(completer, piece, path, stream, heard):
    """Before it heard anything, and in the middle of an answer."""
    begun = asyncio.Event()

    async def silence():
        for _ in range(heard):
            yield piece("a")
        begun.set()
        await asyncio.Event().wait()
        yield None

    class Silent:
        request_id, prompt_tokens, cached_tokens, cancelled = "req-1", 1, 0, False
        pieces = staticmethod(silence)

        def cancel(self):
            self.cancelled = True

    script = Silent()

    async def complete(_caller, _request):
        return script

    completer.complete = complete
    (route,) = (
        route
        for route in OpenAIRoutes(completer, lambda _: "me", VirtualClock()).routes()
        if route.path == path
    )
    asked = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    body = json.dumps({"model": "one", "stream": stream, **asked}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    await asyncio.wait_for(route.app(scope, receive, send), 5)
    assert script.cancelled
    assert sent[0]["status"] == (200 if heard else 499)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_in_several_pieces_is_one_prompt(face, completer, stream):
    def told(text, offset, **fields):
        tokens = [Token(1, one, one.encode(), -1.0, (), offset + k) for k, one in enumerate(text)]
        return Piece(0, text, tuple(tokens), **fields)

    completer.say(
        told("ab", 0, echo=True), told("cd", 2, echo=True), told("xy", 0, finish_reason="length")
    )
    reply = await face.post(PLAIN, prompt="abcd", echo=True, logprobs=0, stream=stream)
    found = events(reply)[:-1] if stream else [reply.text]
    choices = [json.loads(one)["choices"][0] for one in found]
    assert "".join(choice["text"] for choice in choices) == "abcdxy"
    offsets = [one for choice in choices for one in choice["logprobs"]["text_offset"]]
    assert offsets == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        (CHAT, {"messages": HELLO, "logprobs": True}, "logprobs"),
        (PLAIN, {"prompt": "Hello", "logprobs": 0}, "logprobs"),
        (PLAIN, {"prompt": "Hello", "best_of": 2}, "best_of"),
    ],
)
async def test_log_probabilities_that_nobody_knows_are_refused_by_name(
    face, completer, stream, path, asked, param
):
    """Of a server of another kind behind a mesh: 0 would say that every token was certain."""
    unknown = Token(-1, "Hi", b"Hi", None)
    completer.say(Piece(0, "Hi", (unknown,)), Piece(0, finish_reason="stop"))
    response = await face.post(path, **asked, stream=stream)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")


@pytest.mark.parametrize("count", [3, 1000])
@pytest.mark.parametrize(
    ("path", "asked", "module"),
    [
        (CHAT, {"messages": HELLO, "logprobs": True}, chat),
        (PLAIN, {"prompt": "a", "logprobs": 1}, completions),
    ],
)
async def test_figures_of_many_tokens_are_written_in_a_thread(
    face, completer, monkeypatch, count, path, asked, module
):
    """Everybody else would wait for them."""
    threads, figures = [], module._figures

    def noted(*args):
        threads.append(threading.get_ident())
        return figures(*args)

    monkeypatch.setattr(module, "_figures", noted)
    tokens = tuple(Token(5, "a", b"a", -1.0, (Token(5, "a", b"a", -1.0),)) for _ in range(count))
    completer.say(Piece(0, "a" * count, tokens, finish_reason="stop"))
    reply = (await face.post(path, n=1, **asked)).json()
    (choice,) = reply["choices"]
    told = choice["logprobs"]["content" if module is chat else "tokens"]
    assert (len(told), reply["usage"]["completion_tokens"]) == (count, count)
    assert (threads[-1] == threading.get_ident()) == (count == 3)
