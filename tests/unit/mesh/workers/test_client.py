"""A client worker: it finds gateways, goes to another in time, and signs only what came."""

from __future__ import annotations

import asyncio
import gzip

import httpx
import msgspec
import pytest
from mesh_gateway import CONTEXT, MODEL, ScriptedProcessor, caller_of, until
from mesh_rpc import caught
from mesh_scripted import completion, text_of

from tinkex.errors import (
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    InternalServerError,
    NoQuorumError,
    NotFoundError,
    RateLimitError,
    StorageError,
)
from tinkex.mesh.accounts.scopes import INFER
from tinkex.mesh.api import auth
from tinkex.mesh.api.completion import PieceMessage, completion_message
from tinkex.mesh.api.gateway import Complete, CountPrompt, GatewayApi, Receipt
from tinkex.mesh.processing.backend import KEEP_ALIVE_S
from tinkex.mesh.rpc.messages import MAX_BODY_BYTES as MAX_MESSAGE_BYTES
from tinkex.mesh.trust.receipts import ReceiptBody, sign_receipt, verify_receipt
from tinkex.mesh.usage import Countersigned
from tinkex.mesh.workers.calling.http_app import MAX_BODY_BYTES, http_app
from tinkex.mesh.workers.client import ClientConfig
from tinkex.mesh.workers.gateway import GatewayConfig
from tinkex.mesh.workers.serving.admission import AdmissionConfig
from tinkex.openai_api.completer import ChatPrompt, CompletionRequest, TextPrompt
from tinkex.openai_api.refusal import is_context_length_exceeded


def request(**changes) -> CompletionRequest:
    given = {"model": MODEL, "prompt": TextPrompt("hello"), "max_tokens": 12, "seed": 5}
    return CompletionRequest(**(given | changes))


async def read(found):
    """Read a completion to its end: the text, the tokens, how often nothing came."""
    text, tokens, alive = "", [], 0
    async for piece in found.pieces():
        if piece is None:
            alive += 1
            continue
        text += piece.text
        tokens += [token.token for token in piece.tokens]
    await found.settled()
    return text, tokens, alive


def right(text, tokens, **changes):
    expected = completion(completion_message(request(**changes)), 0, 12)
    return (text, tokens) == (text_of(expected), expected)


async def test_a_completion_comes_whole_and_its_receipt_is_countersigned(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    client = await world.add_client()
    found = await client.completer.complete("right", request())
    assert found.prompt_tokens == 5
    text, tokens, _ = await read(found)
    assert right(text, tokens)
    assert found.reproducible
    (kept,) = client.completer.receipts
    assert verify_receipt(kept.body, kept.signature, gateway=gateway.peer_id) == found.receipt

    async def agreed():
        return isinstance((await world.usage(gateway))[-1], Countersigned)

    for _ in range(50):
        if await agreed():
            return
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
    raise AssertionError("it was not countersigned")


async def test_a_prompts_size_may_be_known_at_the_end_only(world):
    def foreign(events):
        begun = msgspec.structs.replace(events[0], prompt_tokens=0)
        ended = msgspec.structs.replace(events[-1], prompt_tokens=5)
        return [begun, *events[1:-1], ended]

    processor = await world.add_processor(deterministic=False)
    processor.change = foreign
    await world.add_gateway()
    client = await world.add_client()
    found = await client.completer.complete("right", request())
    assert found.accepted.prompt_tokens == 0
    await read(found)
    assert found.prompt_tokens == 5
    assert found.receipt.prompt_tokens == 5


class SlowToBegin(ScriptedProcessor):
    """Reads its prompt for minutes, as a large model without a GPU does, giving signs of life."""

    SIGNS = 14

    async def rpc_complete(self, request, call):
        self.works.append(request)
        begun, *rest = self.events(request)
        yield begun
        for _ in range(self.SIGNS):
            await self.clock.sleep(KEEP_ALIVE_S)
            yield PieceMessage(0)
        for event in rest:
            yield event


@pytest.mark.parametrize("changes", [{}, {"echo": True, "prompt_logprobs": True}], ids=str)
async def test_a_prompt_that_is_read_for_minutes_is_waited_for(world, changes):
    processor = SlowToBegin()
    processor.clock = world.clock
    await world.add_processor(processor)
    await world.add_gateway()
    client = await world.add_client()
    found = await world.in_time(client.completer.complete("right", request(**changes)))
    text, _, alive = await world.in_time(read(found), step=0.25)
    assert text.endswith(text_of(completion(completion_message(request(**changes)), 0, 12)))
    assert alive > SlowToBegin.SIGNS
    assert len(processor.works) == 1
    assert found.receipt.completion_tokens == 12


async def test_errors_of_a_gateway_reach_the_program(world):
    await world.add_processor()
    await world.add_gateway()
    client = await world.add_client()
    with pytest.raises(AuthenticationError):
        await client.completer.complete("wrong", request())
    with pytest.raises(NotFoundError):
        await client.completer.complete("right", request(model="nobodys"))


@pytest.mark.parametrize("count", [True, False], ids=["counted", "completed"])
async def test_prompt_that_no_message_holds_is_refused_as_too_long(world, count):
    await world.add_processor()
    await world.add_gateway()
    client = await world.add_client()
    prompt = TextPrompt("x" * (MAX_MESSAGE_BYTES + 1))
    asked = (
        client.completer.count_tokens("right", MODEL, prompt)
        if count
        else client.completer.complete("right", request(prompt=prompt))
    )
    with pytest.raises(APIStatusError, match=str(MAX_MESSAGE_BYTES)) as refused:
        await asked
    assert is_context_length_exceeded(refused.value)


async def test_prompt_that_is_too_long_with_its_permit_alone_is_refused_as_too_long(world):
    """What a gateway sends on has more beside the prompt than what it got."""
    await world.add_processor()
    await world.add_gateway()
    client = await world.add_client()
    bare = Complete(credential="right", request=completion_message(request(prompt=TextPrompt(""))))
    room = MAX_MESSAGE_BYTES - len(msgspec.msgpack.encode(bare)) - 4  # its length has more bytes
    error = await caught(client.completer.complete("right", request(prompt=TextPrompt("x" * room))))
    assert is_context_length_exceeded(error)


async def test_without_a_gateway_a_program_is_told_so(world):
    client = await world.add_client()
    error = await caught(client.completer.complete("right", request()))
    assert isinstance(error, InternalServerError)
    assert (error.status_code, error.retry_after_ms) == (503, 1000.0)


async def test_links_to_two_gateways_are_kept(world):
    for name in "abc":
        await world.add_gateway(name)
    client = await world.add_client()
    await until(lambda: len(client.member.peers.links()) == 2)


async def two_gateways(world):
    """A client, and its gateways in the order in which it asks them."""
    await world.add_processor()
    made = [await world.add_gateway(name) for name in "ab"]
    client = await world.add_client()
    await client._gateways.look()
    order = [contact.peer_id for contact in await client._gateways._ordered()]
    return client, *sorted(made, key=lambda gateway: order.index(gateway.peer_id))


async def sharing_a_limit(world, requests_per_minute):
    """A client, and the second of its two gateways, both of which know that they divide a limit."""
    world.settings = GatewayConfig(
        admission=AdmissionConfig(requests_per_minute=requests_per_minute)
    )
    client, first, second = await two_gateways(world)
    for gateway in (first, second):
        await world.look_again(gateway)
    return client, second


async def test_a_gateway_that_is_gone_is_replaced(world):
    client, first, second = await two_gateways(world)
    await world.crash(first)
    found = await client.completer.complete("right", request())
    assert right(*(await read(found))[:2])
    assert found.receipt.gateway == second.peer_id.raw


async def test_a_gateway_that_is_lost_before_the_first_token_is_replaced(world):
    client, first, second = await two_gateways(world)
    processor = world.processors[0]
    processor.pause_after = 0
    found = await world.in_time(client.completer.complete("right", request()))
    await world.crash(first)
    processor.pause_after = None
    processor.resume_sending.set()
    assert right(*(await read(found))[:2])
    assert found.receipt.gateway == second.peer_id.raw


async def test_a_gateway_whose_disk_is_full_is_replaced(world, monkeypatch):
    client, first, second = await two_gateways(world)

    async def full(*_, **__):
        raise StorageError("the disk is full")

    monkeypatch.setattr(first._ledger._feed, "append", full)
    found = await client.completer.complete("right", request())
    assert right(*(await read(found))[:2])
    assert found.receipt.gateway == second.peer_id.raw
    monkeypatch.setattr(second._ledger._feed, "append", full)
    error = await caught(client.completer.complete("right", request()))
    assert isinstance(error, InternalServerError)
    assert error.status_code == 503
    assert "the disk is full" in str(error)


async def test_the_shares_that_gateways_have_of_a_limit_can_all_be_used(world):
    client, _ = await sharing_a_limit(world, 4)
    signers = []
    for _ in range(4):
        found = await client.completer.complete("right", request())
        assert right(*(await read(found))[:2])
        signers.append(found.receipt.gateway)
    assert sorted(map(signers.count, {*signers})) == [2, 2]
    error = await caught(client.completer.complete("right", request()))
    assert isinstance(error, RateLimitError)
    assert error.retry_after_ms > 1000
    assert client._gateways._avoided == {}, "nothing is wrong with them"


async def test_a_used_up_share_is_told_though_the_next_gateway_is_gone(world):
    client, second = await sharing_a_limit(world, 2)
    await read(await client.completer.complete("right", request()))
    await world.crash(second)
    for _ in range(2):  # whichever of them is asked first
        error = await caught(client.completer.complete("right", request()))
        assert isinstance(error, RateLimitError)
        assert error.retry_after_ms > 1000
    query = CountPrompt(credential="right", request=completion_message(request()))
    error = await caught(client._gateways.ask(GatewayApi.rpc_count_tokens, query))
    assert isinstance(error, RateLimitError)


async def test_of_two_used_up_shares_the_one_that_comes_back_first_is_told(world):
    client, _ = await sharing_a_limit(world, 2)
    await read(await client.completer.complete("right", request()))
    await world.pass_time(20)
    await read(await client.completer.complete("right", request()))
    error = await caught(client.completer.complete("right", request()))
    assert isinstance(error, RateLimitError)
    assert 30_000 < error.retry_after_ms < 42_000


async def test_a_gateway_that_is_lost_later_ends_the_completion_with_an_error(world):
    client, first, _ = await two_gateways(world)
    processor = world.processors[0]
    processor.pause_after = 4
    found = await client.completer.complete("right", request())
    pieces = found.pieces()
    assert await anext(pieces) is not None
    await world.crash(first)

    async def rest():
        async for _ in pieces:
            pass

    error = await caught(rest())
    assert isinstance(error, APIStatusError)
    assert error.status_code == 502


async def test_a_gateway_that_stops_sends_the_client_to_another(world):
    client, first, second = await two_gateways(world)
    first._service.leaving = True
    found = await client.completer.complete("right", request())
    await read(found)
    assert found.receipt.gateway == second.peer_id.raw


async def test_a_reader_is_told_that_it_goes_on(world):
    processor = await world.add_processor()
    processor.pause_after = 1
    await world.add_gateway()
    client = await world.add_client()
    found = await client.completer.complete("right", request())
    reading = asyncio.ensure_future(read(found))
    await world.pass_time(11)
    processor.resume_sending.set()
    text, tokens, alive = await reading
    assert right(text, tokens)
    assert alive == 2


async def test_a_program_that_leaves_ends_the_work(world):
    processor = await world.add_processor()
    processor.pause_after = 1
    gateway = await world.add_gateway()
    client = await world.add_client()
    found = await client.completer.complete("right", request())
    found.cancel()
    found.cancel()
    await until(lambda: processor.cancelled == 1)
    await until(lambda: gateway.in_progress == 0)


@pytest.mark.parametrize(
    "lie",
    [{"completion_tokens": 99}, {"prompt_tokens": 6}, {"output": bytes(32)}, {"request_id": "x"}],
    ids=lambda lie: next(iter(lie)),
)
async def test_a_receipt_that_does_not_say_what_came_is_not_signed(world, lie, monkeypatch):
    await world.add_processor()
    gateway = await world.add_gateway()
    client = await world.add_client()
    honest = gateway._service._completions._receipt

    def lying(served, entry):
        body = msgspec.msgpack.decode(honest(served, entry).body, type=ReceiptBody)
        body, signature = sign_receipt(gateway.key_pair, msgspec.structs.replace(body, **lie))
        return Receipt(body=body, signature=signature)

    monkeypatch.setattr(gateway._service._completions, "_receipt", lying)
    found = await client.completer.complete("right", request())
    assert right(*(await read(found))[:2]), "what came is right all the same"
    assert found.receipt is None
    assert list(client.completer.receipts) == []
    assert not any(isinstance(entry, Countersigned) for entry in await world.usage(gateway))


async def test_a_call_that_may_have_been_done_is_not_repeated(world):
    client, first, second = await two_gateways(world)
    del second
    waiting = asyncio.Event()

    async def never():
        waiting.set()
        await asyncio.Event().wait()

    world.auth.answers[auth.Register] = never
    asking = asyncio.ensure_future(
        client.ask(GatewayApi.rpc_register, auth.Register("a@b.c", "secret"))
    )
    await until(waiting.is_set)
    await world.crash(first)
    error = await caught(asking)
    assert isinstance(error, InternalServerError)
    assert "may have been done" in str(error)


async def test_what_an_auth_worker_may_have_done_is_not_asked_of_another_gateway(world):
    client, _, _ = await two_gateways(world)
    asked = []

    async def too_few_hold_it():
        asked.append("register")
        raise NoQuorumError("whether it counts is not known yet", category="unknown")

    world.auth.answers[auth.Register] = too_few_hold_it
    error = await caught(client.ask(GatewayApi.rpc_register, auth.Register("a@b.c", "secret")))
    assert isinstance(error, InternalServerError)
    assert "may have been done" in str(error)
    assert asked == ["register"]


async def test_a_client_serves_this_machine_alone():
    with pytest.raises(ConfigurationError, match="own machine"):
        ClientConfig(host="0.0.0.0")
    with pytest.raises(ConfigurationError, match="port"):
        ClientConfig(port=70000)


async def test_a_client_that_stops_lets_programs_have_their_answers(world):
    processor = await world.add_processor()
    processor.pause_after = 2
    await world.add_gateway()
    client = await world.add_client(host="127.0.0.1")
    key = {"authorization": "Bearer right"}
    async with httpx.AsyncClient(base_url=client.url, headers=key, timeout=None) as program:
        asking = asyncio.create_task(program.post("/v1/completions", json=BODY))
        await until(lambda: processor.works)
        stopping = asyncio.create_task(client.stop(30.0))
        await world.pass_time(20)
        processor.resume_sending.set()
        reply = (await asking).json()
        assert right(reply["choices"][0]["text"], completion(completion_message(request()), 0, 12))
        await stopping


@pytest.fixture
async def http(world):
    """A program of a client worker's HTTP, with a right key."""
    await world.add_processor()
    await world.add_gateway()
    client = await world.add_client()
    app = http_app(client.completer, client.ask, clock=world.clock)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://127.0.0.1",
        headers={"authorization": "Bearer right"},
    ) as program:
        yield program


BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 12, "seed": 5}


async def test_openai_programs_are_served(http):
    reply = (await http.post("/v1/completions", json=BODY)).json()
    assert right(reply["choices"][0]["text"], completion(completion_message(request()), 0, 12))
    assert reply["usage"]["completion_tokens"] == 12
    models = (await http.get("/v1/models")).json()["data"]
    assert [(model["id"], model["max_context_length"]) for model in models] == [(MODEL, CONTEXT)]
    assert (await http.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL


async def test_a_stream_ends_with_usage_and_done(http):
    body = BODY | {"stream": True, "stream_options": {"include_usage": True}}
    lines = (await http.post("/v1/completions", json=body)).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    usage = msgspec.json.decode(lines[-2].removeprefix("data: "))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 12)


@pytest.mark.parametrize(
    ("headers", "path", "status", "code"),
    [
        ({"authorization": ""}, "/v1/models", 401, "invalid_api_key"),
        ({"authorization": "Bearer wrong"}, "/v1/models", 401, "invalid_api_key"),
        ({"authorization": "Basic right"}, "/v1/models", 401, "invalid_api_key"),
        ({}, "/v1/models/nobodys", 404, "model_not_found"),
        ({}, "/v1/nothing", 404, None),
    ],
)
async def test_refusals_have_openais_form(http, headers, path, status, code):
    reply = await http.get(path, headers=headers)
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code


@pytest.mark.parametrize("path", ["completions", "chat/completions", "messages"])
async def test_a_wrong_key_is_told_before_what_is_wrong_with_the_body(world, http, path):
    world.accounts.known["may-not-list"] = caller_of(scopes=frozenset({INFER}))
    wrong = {"authorization": "Bearer wrong"}
    refused = [
        await http.post(f"/v1/{path}", content=content, headers=headers)
        for headers in (wrong, {"authorization": "Bearer may-not-list"}, {})
        for content in (b"{", msgspec.json.encode({"model": MODEL, "messages": []}))
    ]
    assert [reply.status_code for reply in refused] == [401, 401, 400, 400, 400, 400]


async def test_a_model_that_nobody_runs_is_not_found(http):
    reply = await http.post("/v1/completions", json=BODY | {"model": "nobodys"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "change",
    [{"max_tokens": 2**64}, {"max_tokens": 10**30}, {"top_k": 10**30}, {"prompt": [10**30]}],
    ids=str,
)
async def test_numbers_that_no_message_holds_are_refused_in_openais_form(http, change):
    reply = await http.post("/v1/completions", json=BODY | change)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    (name,) = change
    assert error["param"] == (None if name == "prompt" else name)


@pytest.mark.parametrize("name", ["host", "origin"])
async def test_web_pages_are_refused(http, name):
    value = "http://evil.example" if name == "origin" else "evil.example"
    assert (await http.get("/v1/models", headers={name: value})).status_code == 403


async def test_a_body_without_end_is_refused(http):
    async def flood():
        for _ in range(MAX_BODY_BYTES // 2**20 + 2):
            yield b"x" * 2**20

    for content in (b"x" * (MAX_BODY_BYTES + 1), flood()):
        reply = await http.post("/v1/completions", content=content)
        assert reply.status_code == 413


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/mesh/login"])
async def test_a_compressed_body_is_refused_by_name(http, path):
    content, headers = gzip.compress(msgspec.json.encode(BODY)), {"content-encoding": "gzip"}
    reply = await http.post(path, content=content, headers=headers)
    assert (reply.status_code, "'gzip'" in reply.json()["error"]["message"]) == (415, True)
    plain = {"content-encoding": "identity"}
    assert (await http.post("/v1/completions", json=BODY, headers=plain)).status_code == 200


async def test_anthropics_programs_are_served(http):
    body = {"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}
    reply = await http.post(
        "/v1/messages", json=body, headers={"x-api-key": "right", "authorization": ""}
    )
    assert reply.status_code == 200
    assert reply.json()["usage"]["output_tokens"] == 4


async def test_prompts_are_counted(world):
    await world.add_processor()
    await world.add_gateway()
    client = await world.add_client()
    prompt = ChatPrompt(messages=[{"role": "user", "content": "abc"}])
    assert await client.completer.count_tokens("right", MODEL, prompt) == 3
