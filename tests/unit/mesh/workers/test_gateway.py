"""A gateway and its clients: admission, cost, receipts, accounts, adapters, its life."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress

import msgspec
import pytest
from mesh_gateway import (
    CONTEXT,
    MODEL,
    ScriptedAuth,
    ScriptedProcessor,
    caller_of,
    completion_message,
    until,
)
from mesh_rpc import caught
from mesh_scripted import completion, text_of

from tinkex.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    BillingError,
    ConflictError,
    EngineError,
    InternalServerError,
    LinkClosedError,
    NoQuorumError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    TinkerError,
)
from tinkex.mesh.api import auth
from tinkex.mesh.api.completion import CompletionMessage, TextMessage, TokensMessage
from tinkex.mesh.api.gateway import (
    Accepted,
    Countersign,
    CountPrompt,
    GatewayApi,
    ListModels,
    PublishAdapter,
    UnpublishAdapter,
)
from tinkex.mesh.catalog import AdapterPublished, AdapterUnpublished, encode_catalog
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.tasks import let_others_run
from tinkex.mesh.trust.permits import BlobPermit, Permit, request_hash
from tinkex.mesh.trust.receipts import countersign, verify_receipt
from tinkex.mesh.usage import Countersigned, LeaseClosed, Reserved, Settled, StillHere
from tinkex.mesh.workers.gateway import GatewayConfig
from tinkex.mesh.workers.serving.admission import AdmissionConfig
from tinkex.mesh.workers.serving.completion import AWAY_MS
from tinkex.mesh.workers.serving.directory import LATELY_S
from tinkex.openai_api.refusal import context_length_exceeded

CONTENT = "ab" * 32


def right(answer, tokens=12):
    """Whether a client got exactly what the model makes."""
    for index in range(answer.message.n):
        expected = completion(answer.message, index, tokens)
        assert answer.tokens[index] == expected
        assert answer.texts[index] == text_of(expected)
        assert answer.reasons[index] == "length"
    return True


def settled_of(entries):
    return [entry for entry in entries if isinstance(entry, Settled)]


async def test_a_completion_reaches_its_client_with_a_receipt(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    answer = await world.answer(gateway, n=2)
    assert right(answer)
    assert answer.accepted.prompt_tokens == 5
    assert answer.accepted.reproducible
    receipt = verify_receipt(answer.receipt.body, answer.receipt.signature, gateway=gateway.peer_id)
    assert (receipt.prompt_tokens, receipt.completion_tokens, receipt.seed) == (5, 24, 5)
    assert receipt.request_id == answer.accepted.request_id
    reserved, settled = await world.usage(gateway)
    assert isinstance(reserved, Reserved)
    assert (settled.prompt_tokens, settled.completion_tokens) == (5, 24)
    assert reserved.tokens >= 29
    assert gateway.in_progress == 0


async def test_a_processor_that_starts_anew_is_used_as_soon_as_it_serves(world):
    processor = await world.add_processor()
    gateway = await world.add_gateway()
    assert right(await world.answer(gateway))
    world.cut(processor.peers)
    await processor.peers.stop()
    peers = await world.peer(credentials=processor.peers.credentials)
    certificate = world.trust.peer(Role.PROCESSOR, peers.credentials.key_pair).certificate
    world.board.put("processor", Offer(), peers.contact, certificate)
    await world.look_again(gateway)  # its model is being loaded yet
    peers.serve(processor)
    await world.look_again(gateway)
    assert right(await world.answer(gateway))


class SlowToDescribe(ScriptedProcessor):
    """Says what it has once it is told to."""

    def __init__(self):
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def rpc_describe(self, request, call):
        self.asked.set()
        await self.go.wait()
        return await super().rpc_describe(request, call)


async def test_a_model_is_looked_for_though_a_round_that_knows_nothing_of_it_is_under_way(world):
    slow = await world.add_processor(SlowToDescribe())
    slow.go.set()
    gateway = await world.add_gateway()
    slow.go.clear()
    slow.asked.clear()
    round_under_way = asyncio.ensure_future(world.look_again(gateway))
    await slow.asked.wait()
    rare = ScriptedProcessor()
    rare.models = ["rare"]
    await world.add_processor(rare)
    answer = asyncio.ensure_future(world.answer(gateway, model="rare"))
    await until(lambda: gateway.in_progress)
    slow.go.set()
    await round_under_way
    assert right(await answer)
    assert rare.works


@pytest.mark.parametrize("skew_s", [-60, 60])
async def test_a_gateway_whose_clock_is_a_minute_wrong_serves(world, skew_s):
    await world.add_processor()
    gateway = await world.add_gateway(skew_s=skew_s)
    assert right(await world.answer(gateway))


async def test_a_processor_gets_a_permit_for_the_very_request(world):
    processor = await world.add_processor()
    gateway = await world.add_gateway()
    await world.answer(gateway, seed=None)
    await world.answer(gateway, seed=5)
    work, given = processor.works
    permit = msgspec.msgpack.decode(msgspec.msgpack.decode(work.permit)[0], type=Permit)
    assert permit.processor == processor.peers.peer_id.raw
    assert permit.gateway == gateway.peer_id.raw
    assert permit.request_hash == request_hash(work.request)
    assert (permit.account, permit.model, permit.max_tokens) == ("ann", MODEL, 12)
    assert work.fetch == b"", "there is no adapter whose files it may have"
    message = msgspec.msgpack.decode(work.request, type=CompletionMessage)
    assert message.seed is not None, "drawn, so that another processor can go on"
    assert message.seed_drawn
    assert not msgspec.msgpack.decode(given.request, type=CompletionMessage).seed_drawn


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"credential": "wrong"}, AuthenticationError),
        ({"model": "nobodys"}, NotFoundError),
        ({"n": 0}, BadRequestError),
        ({"prompt": TokensMessage([1] * (CONTEXT + 1))}, BadRequestError),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_served_is_refused_and_costs_nothing(world, changes, error):
    processor = await world.add_processor()
    gateway = await world.add_gateway()
    assert isinstance(await caught(world.answer(gateway, **changes)), error)
    assert processor.works == []
    assert await world.usage(gateway) == []
    assert gateway.in_progress == 0


async def test_a_name_too_long_for_any_model_is_unknown_and_stops_no_gateway(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway, model="x" * 123))
    assert isinstance(error, NotFoundError)
    assert error.body == {"param": "model", "code": "model_not_found"}
    await world.pass_time(30, step=1.0)  # longer than what processors said of themselves counts
    assert right(await world.answer(gateway))


async def test_a_model_whose_only_processor_is_away_is_to_be_tried_again_and_unknown_much_later(
    world,
):
    processor = await world.add_processor()
    gateway = await world.add_gateway()
    assert right(await world.answer(gateway))
    processor.lose()
    await world.pass_time(20, step=1.0)
    error = await caught(world.answer(gateway))
    assert isinstance(error, InternalServerError)
    assert (error.status_code, error.retry_after_ms) == (503, AWAY_MS)
    assert gateway.in_progress == 0
    await world.pass_time(LATELY_S, step=1.0)
    assert isinstance(await caught(world.answer(gateway)), NotFoundError)


async def test_a_model_that_nobody_runs_is_not_looked_for_for_ever(world, monkeypatch):
    await world.add_processor()
    gateway = await world.add_gateway()
    looked_up, lookup = [], gateway.member.discovery.lookup

    async def noted(topic):
        looked_up.append(topic)
        return await lookup(topic)

    monkeypatch.setattr(gateway.member.discovery, "lookup", noted)
    assert isinstance(await caught(world.answer(gateway, model="mistyped")), NotFoundError)
    await world.pass_time(LATELY_S / 2, step=2.0)
    assert "model:mistyped" in looked_up[-5:]
    await world.pass_time(LATELY_S / 2 + 5, step=2.0)
    assert "model:mistyped" not in looked_up[-5:]


async def test_a_key_without_the_scope_is_refused(world):
    world.accounts.known["reader"] = caller_of(scopes=frozenset({"read"}))
    await world.add_processor()
    gateway = await world.add_gateway()
    with pytest.raises(PermissionDeniedError):
        await world.answer(gateway, credential="reader")


async def test_what_the_processor_refuses_reaches_the_client_whole_and_costs_nothing(world):
    processor = await world.add_processor()
    processor.raises = BadRequestError("the prompt is too long", body={"code": "too_long"})
    other = await world.add_processor()
    other.raises = processor.raises
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert isinstance(error, BadRequestError)
    assert error.body == {"param": None, "code": "too_long"}
    assert len(processor.works) + len(other.works) == 1
    await until(lambda: gateway.in_progress == 0)
    (settled,) = settled_of(await world.usage(gateway))
    assert settled.prompt_tokens + settled.completion_tokens == 0


async def test_a_client_that_leaves_stops_the_processor_and_pays_for_what_came(world):
    processor = await world.add_processor()
    processor.pause_after = 3
    gateway = await world.add_gateway()
    came = 0
    async with aclosing(world.complete(gateway)) as events:
        async for event in events:
            came += 0 if isinstance(event, Accepted) else len(event.tokens)
            if came >= 3:
                break
    await until(lambda: processor.cancelled == 1)
    await until(lambda: gateway.in_progress == 0)
    (settled,) = settled_of(await world.usage(gateway))
    assert settled.prompt_tokens == 5
    assert came <= settled.completion_tokens < 12
    assert settled.receipt == b""


class CountsAtTheEnd(ScriptedProcessor):
    """As one before a foreign server does, which alone knows how long a prompt is."""

    def events(self, work):
        begun, *between, ended = super().events(work)
        ended = msgspec.structs.replace(ended, prompt_tokens=begun.prompt_tokens)
        return [msgspec.structs.replace(begun, prompt_tokens=0), *between, ended]


async def prompt_cost(world, processor, gateway):
    """Ask, leave where the processor pauses, and return what a prompt of 100 bytes cost."""
    left, before = 4, len(settled_of(await world.usage(gateway)))
    with suppress(TinkerError):
        async with aclosing(world.complete(gateway, prompt=TextMessage("x" * 100))) as events:
            async for _ in events:
                left -= 1
                if not left and processor.pause_after is not None:
                    break
    while len(settled := settled_of(await world.usage(gateway))) == before:
        await let_others_run()
    return settled[-1].prompt_tokens


async def test_a_prompt_that_is_counted_at_the_end_is_not_free_where_that_does_not_come(world):
    """It costs what its bytes let expect: a foreign server has worked for it."""
    processor = await world.add_processor(CountsAtTheEnd(deterministic=False))
    gateway = await world.add_gateway()
    assert await prompt_cost(world, processor, gateway) == 100
    processor.pause_after = 3
    assert await prompt_cost(world, processor, gateway) == 25
    processor.pause_after = None
    processor.lose_after, processor.raises = 3, EngineError("out of memory")
    assert await prompt_cost(world, processor, gateway) == 25
    processor.lose_after = None
    assert await prompt_cost(world, processor, gateway) == 0
    processor.raises, processor.change = None, lambda events: events[:-1]
    assert await prompt_cost(world, processor, gateway) == 25


async def test_a_quota_that_is_used_up_is_an_error_of_its_own(world):
    world.auth.quota = 20
    processor = await world.add_processor()
    gateway = await world.add_gateway()
    with pytest.raises(BillingError):
        await world.answer(gateway)
    assert processor.works == []


async def test_one_lease_serves_many_requests_and_goes_back_when_its_time_is_over(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    for _ in range(3):
        await world.answer(gateway)
    assert len(world.auth.given) == 1
    await world.pass_time(70, step=2.5)
    assert world.auth.settled == {"lease0": 51}
    assert isinstance((await world.usage(gateway))[-1], LeaseClosed)
    assert world.auth.quota == 1_000_000 - 51


async def test_what_is_left_in_small_leases_is_put_together(world):
    world.auth.quota, world.auth.lease_tokens = 80, 60
    await world.add_processor()
    gateway = await world.add_gateway()
    await world.answer(gateway)
    await world.answer(gateway, max_tokens=40, prompt=TokensMessage([1] * 10))
    assert world.auth.settled == {"lease0": 17}


async def test_without_an_auth_worker_a_lease_is_used_up_and_then_requests_are_refused(world):
    world.auth.lease_tokens = 45
    await world.add_processor()
    gateway = await world.add_gateway()
    await world.answer(gateway)
    world.board.reachable = False
    await world.answer(gateway)
    error = await caught(world.answer(gateway))
    assert isinstance(error, InternalServerError)
    assert (error.status_code, error.retry_after_ms) == (503, 1000.0)


async def test_auth_workers_are_tried_one_after_the_other(world):
    class NoLeader(ScriptedAuth):
        async def rpc_lease(self, request, call):
            raise NoQuorumError("too few")

    second = NoLeader(world.clock)
    await world.add_auth(second)
    await world.add_processor()
    gateway = await world.add_gateway()
    assert right(await world.answer(gateway))


async def test_limits_of_a_key_are_kept(world):
    world.settings = GatewayConfig(admission=AdmissionConfig(requests_per_minute=2))
    await world.add_processor()
    gateway = await world.add_gateway()
    for _ in range(2):
        await world.answer(gateway)
    error = await caught(world.answer(gateway))
    assert isinstance(error, RateLimitError)
    assert error.retry_after_ms > 0
    assert right(await world.answer(gateway, credential="bob"))


async def test_tokens_that_a_request_did_not_need_count_towards_no_limit(world):
    """It may have 25, as a gateway bounds a prompt by its bytes, and has 17."""
    world.settings = GatewayConfig(admission=AdmissionConfig(tokens_per_minute=60))
    await world.add_processor()
    gateway = await world.add_gateway()
    for _ in range(3):
        assert right(await world.answer(gateway))
    assert isinstance(await caught(world.answer(gateway)), RateLimitError)


async def test_refused_request_counts_towards_no_limit_of_tokens(world):
    world.settings = GatewayConfig(admission=AdmissionConfig(tokens_per_minute=60))
    world.auth.quota = 0
    await world.add_processor()
    gateway = await world.add_gateway()
    for _ in range(9):
        assert isinstance(await caught(world.answer(gateway)), BillingError)


async def test_a_client_countersigns_its_own_receipt_once(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    answer = await world.answer(gateway)
    pair = world.client.credentials.key_pair
    good = Countersign(body=answer.receipt.body, signature=countersign(pair, answer.receipt.body))
    bad = Countersign(body=answer.receipt.body, signature=bytes(64))
    with pytest.raises(PermissionDeniedError):
        await world.call(gateway, GatewayApi.rpc_countersign, bad)
    await world.call(gateway, GatewayApi.rpc_countersign, good)
    assert isinstance((await world.usage(gateway))[-1], Countersigned)
    for other in (good, Countersign(body=b"x", signature=b"")):
        with pytest.raises(NotFoundError):
            await world.call(gateway, GatewayApi.rpc_countersign, other)


async def rest_of(events):
    async for _ in events:
        pass


async def test_a_gateway_that_crashed_settles_from_the_reservation(world):
    processor = await world.add_processor()
    processor.pause_after = 2
    gateway = await world.add_gateway()
    pair = gateway.key_pair
    events = world.complete(gateway)
    await anext(events)
    (reserved,) = await world.usage(gateway)
    await world.crash(gateway)
    assert isinstance(await caught(rest_of(events)), LinkClosedError)
    again = await world.add_gateway(key_pair=pair)
    settled, closed = (await world.usage(again))[1:]
    assert settled.state == "from_reservation"
    assert settled.prompt_tokens + settled.completion_tokens == reserved.tokens
    assert isinstance(closed, LeaseClosed)
    processor.pause_after = None
    assert right(await world.answer(again))


async def test_a_gateway_that_only_began_something_says_that_it_is_there(world):
    processor = await world.add_processor()
    processor.pause_after = 2
    gateway = await world.add_gateway()
    events = []
    for _ in range(3):  # each is written, and none is told by itself
        events.append(world.complete(gateway))
        await anext(events[-1])
        await world.pass_time(12.5, step=2.5)
    assert any(isinstance(entry, StillHere) for entry in await world.usage(gateway))
    for one in events:
        await one.aclose()


async def test_an_idle_gateway_says_so_for_leases_that_it_may_have_lost_in_a_crash(world):
    gateway = await world.add_gateway()
    await world.pass_time(340, step=2.5)
    told = await world.usage(gateway)
    assert told
    assert all(isinstance(entry, StillHere) for entry in told)
    assert told[0].at - world.clock.now() + 340 <= 36
    assert len(told) <= 300 / 30
    await world.pass_time(60, step=2.5)
    assert await world.usage(gateway) == told


async def test_a_gateway_that_stops_lets_requests_end_and_takes_no_new_ones(world):
    processor = await world.add_processor()
    processor.pause_after = 2
    gateway = await world.add_gateway()
    answer = asyncio.ensure_future(world.answer(gateway))
    await until(lambda: processor.works)
    stopping = asyncio.ensure_future(gateway.stop(10.0))
    await until(lambda: not world.board.found("gateway"))
    error = await caught(world.answer(gateway))
    assert isinstance(error, APIStatusError)
    assert error.status_code == 503
    processor.resume_sending.set()
    assert right(await answer)
    await world.pass_time(0.2)
    await stopping
    assert world.auth.settled == {"lease0": 17}


async def test_account_call_under_way_is_answered_before_the_end(world):
    gateway = await world.add_gateway()
    go = asyncio.Event()

    async def slowly():
        await go.wait()
        return auth.Done()

    world.auth.answers[auth.Logout] = slowly
    logout = asyncio.ensure_future(world.call(gateway, GatewayApi.rpc_logout, auth.Logout("t")))
    await until(lambda: world.auth.asked)
    stopping = asyncio.ensure_future(gateway.stop(10.0))
    await until(lambda: not world.board.found("gateway"))
    await world.pass_time(1.0)
    assert not stopping.done()
    go.set()
    assert await logout == auth.Done()
    await stopping


async def test_account_call_under_way_holds_up_the_end_for_its_grace_and_no_longer(world):
    gateway = await world.add_gateway()
    world.auth.answers[auth.Logout] = asyncio.Event().wait
    logout = asyncio.ensure_future(world.call(gateway, GatewayApi.rpc_logout, auth.Logout("t")))
    await until(lambda: world.auth.asked)
    stopping = asyncio.ensure_future(gateway.stop(3.0))
    await world.pass_time(2.5)
    assert not stopping.done()
    await world.pass_time(1.0)
    await stopping
    logout.cancel()


async def test_models_are_those_that_processors_run_and_adapters_that_one_may_see(world):
    await world.add_processor()
    await world.add_processor()
    gateway = await world.add_gateway()
    await publish(world, gateway)
    mine = await world.call(gateway, GatewayApi.rpc_models, ListModels(credential="right"))
    theirs = await world.call(gateway, GatewayApi.rpc_models, ListModels(credential="bob"))
    assert [model.name for model in mine.models] == [MODEL, "pirate"]
    assert [model.name for model in theirs.models] == [MODEL]
    assert mine.models[1].base_model == MODEL
    assert {model.processors for model in mine.models} == {2}
    assert {model.max_context_length for model in mine.models} == {CONTEXT}


async def test_list_of_models_is_no_longer_than_a_message_whatever_others_share(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    await publish(world, gateway)
    for number in range(6000):
        event = AdapterPublished(
            account_id=f"acc-{number % 6}",
            name=f"{number:04}-{'x' * 100}",
            at=float(number),
            base_model=MODEL,
            content=f"{number:064x}",
            shared=True,
        )
        gateway._catalog.apply((number,), event)
    found = await world.call(gateway, GatewayApi.rpc_models, ListModels(credential="right"))
    names = [model.name for model in found.models]
    assert names[:2] == [MODEL, "pirate"]
    assert f"5999-{'x' * 100}" in names, "what was shared last comes first"
    assert 1000 < len(names) < 6000
    for name in (MODEL, "pirate", f"0000-{'x' * 100}", f"{MODEL};0000-{'x' * 100}"):
        query = ListModels(credential="right", name=name)
        (one,) = (await world.call(gateway, GatewayApi.rpc_models, query)).models
        assert name in {one.name, f"{one.base_model};{one.name}"}
    query = ListModels(credential="bob", name="pirate")
    assert (await world.call(gateway, GatewayApi.rpc_models, query)).models == ()


async def test_model_of_a_processor_that_has_just_come_is_listed_where_none_was_known(world):
    gateway = await world.add_gateway()
    for expected in ([], [MODEL]):
        found = await world.call(gateway, GatewayApi.rpc_models, ListModels(credential="right"))
        assert [model.name for model in found.models] == expected
        await world.add_processor()


async def test_prompts_are_counted_by_a_processor(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    query = CountPrompt(credential="right", request=completion_message())
    assert (await world.call(gateway, GatewayApi.rpc_count_tokens, query)).tokens == 5


async def test_a_prompt_is_counted_by_the_longest_context_where_it_fits_no_other(world):
    short, long = await world.add_processor(), await world.add_processor()
    short.context, long.free_slots = 64, 0
    short.counts = context_length_exceeded("64 tokens", "prompt")
    gateway = await world.add_gateway()
    query = CountPrompt(credential="right", request=completion_message())
    assert (await world.call(gateway, GatewayApi.rpc_count_tokens, query)).tokens == 5
    long.counts = short.counts
    with pytest.raises(BadRequestError, match="64 tokens"):
        await world.call(gateway, GatewayApi.rpc_count_tokens, query)


async def test_counting_a_prompt_counts_as_a_request(world):
    world.settings = GatewayConfig(admission=AdmissionConfig(requests_per_minute=2))
    await world.add_processor()
    gateway = await world.add_gateway()
    query = CountPrompt(credential="right", request=completion_message())
    for _ in range(2):
        await world.call(gateway, GatewayApi.rpc_count_tokens, query)
    with pytest.raises(RateLimitError):
        await world.call(gateway, GatewayApi.rpc_count_tokens, query)
    assert gateway.in_progress == 0


async def publish(world, gateway, **changes):
    given = {"credential": "right", "name": "pirate", "base_model": MODEL, "content": CONTENT}
    return await world.call(gateway, GatewayApi.rpc_publish, PublishAdapter(**(given | changes)))


@pytest.mark.parametrize("model", ["pirate", f"{MODEL};pirate", f"mesh://{CONTENT}"])
async def test_an_adapter_goes_to_the_processor_that_has_it_and_to_its_owner_alone(world, model):
    plain = await world.add_processor()
    holder = await world.add_processor()
    holder.adapters = (CONTENT,)
    gateway = await world.add_gateway()
    await publish(world, gateway)
    assert right(await world.answer(gateway, model=model))
    (work,) = holder.works
    permit = msgspec.msgpack.decode(msgspec.msgpack.decode(work.permit)[0], type=Permit)
    assert (permit.model, permit.adapter) == (MODEL, CONTENT)
    fetch = msgspec.msgpack.decode(msgspec.msgpack.decode(work.fetch)[0], type=BlobPermit)
    assert (fetch.fetcher, fetch.content) == (holder.peers.peer_id.raw, CONTENT)
    assert plain.works == []
    with pytest.raises(NotFoundError):
        await world.answer(gateway, model=model, credential="bob")


async def test_adapters_are_known_again_after_a_restart_until_they_are_unpublished(world):
    await world.add_processor()
    first = await world.add_gateway()
    await publish(world, first, shared=True)
    await world.crash(first)
    gateway = await world.add_gateway(key_pair=first.key_pair)
    assert right(await world.answer(gateway, model="pirate", credential="bob"))
    name = UnpublishAdapter(credential="right", name="pirate")
    not_mine = UnpublishAdapter(credential="bob", name="pirate")
    with pytest.raises(NotFoundError):
        await world.call(gateway, GatewayApi.rpc_unpublish, not_mine)
    await world.call(gateway, GatewayApi.rpc_unpublish, name)
    with pytest.raises(NotFoundError):
        await world.answer(gateway, model="pirate")


async def test_a_base_model_comes_before_an_adapter_that_had_its_name_first(world):
    await world.add_processor()
    gateway = await world.add_gateway()
    await publish(world, gateway, name="newcomer", shared=True)
    assert right(await world.answer(gateway, model="newcomer", credential="bob"))
    processor = await world.add_processor()
    processor.models = ["newcomer"]
    await world.look_again(gateway)
    assert right(await world.answer(gateway, model="newcomer", credential="bob"))
    (work,) = processor.works
    permit = msgspec.msgpack.decode(msgspec.msgpack.decode(work.permit)[0], type=Permit)
    assert (permit.model, permit.adapter) == ("newcomer", "")
    adapted = await world.answer(gateway, model=f"{MODEL};newcomer", credential="bob")
    assert right(adapted)
    assert len(processor.works) == 1


async def test_another_gateways_nonsense_stops_no_gateway(world):
    await world.add_processor()
    first = await world.add_gateway()
    event = AdapterUnpublished(account_id="ann", name="X", at=1.0)
    deep = b"\x82\xa1x" + b"\x91" * 100_000 + b"\xc0\xa4kind\xa9published"
    published = AdapterPublished(
        account_id="bob",
        name="late",
        at=float("inf"),
        base_model=MODEL,
        content=CONTENT,
        shared=True,
    )
    for payload in (
        b"\xc1",
        encode_catalog(event).replace(b"\xa1X", b"\xa1\xff"),
        deep,
        encode_catalog(published),
    ):
        await first.feeds.own("adapters").append(payload)
    await publish(world, first)
    await world.crash(first)
    gateway = await world.add_gateway(key_pair=first.key_pair)
    assert right(await world.answer(gateway, model="pirate"))
    found = await world.call(gateway, GatewayApi.rpc_models, ListModels(credential="right"))
    assert [model.name for model in found.models] == [MODEL, "pirate"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"credential": "infer-only"}, PermissionDeniedError),
        ({"name": MODEL}, ConflictError),
        ({"name": "a;b"}, BadRequestError),
        ({"content": "x"}, BadRequestError),
        ({"base_model": "nobodys"}, NotFoundError),
    ],
    ids=str,
)
async def test_what_cannot_be_published_is_refused(world, changes, error):
    world.accounts.known["infer-only"] = caller_of(scopes=frozenset({"infer"}))
    await world.add_processor()
    gateway = await world.add_gateway()
    with pytest.raises(error):
        await publish(world, gateway, **changes)


async def test_an_adapter_is_published_for_a_model_whose_processor_has_just_come(world):
    gateway = await world.add_gateway()
    assert isinstance(await caught(publish(world, gateway)), NotFoundError)
    processor = await world.add_processor()
    await publish(world, gateway)
    assert right(await world.answer(gateway, model="pirate"))
    processor.lose()
    await world.pass_time(20, step=1.0)
    error = await caught(publish(world, gateway))
    assert (error.status_code, error.retry_after_ms) == (503, AWAY_MS)


async def test_account_calls_go_to_an_auth_worker_and_its_errors_come_back_whole(world):
    gateway = await world.add_gateway()
    world.auth.answers[auth.Register] = auth.Registered("ann")
    world.auth.answers[auth.Login] = AuthenticationError("wrong password", retry_after_ms=7.0)
    made = await world.call(gateway, GatewayApi.rpc_register, auth.Register("a@b.c", "secret"))
    assert made.account_id == "ann"
    with pytest.raises(AuthenticationError, match="wrong password") as error:
        await world.call(gateway, GatewayApi.rpc_login, auth.Login("a@b.c", "secret"))
    assert error.value.retry_after_ms == 7.0


async def test_one_client_cannot_flood_the_auth_workers(world):
    world.settings = GatewayConfig(admission=AdmissionConfig(account_calls_per_minute=1))
    gateway = await world.add_gateway()
    world.auth.answers[auth.Logout] = auth.Done()
    await world.call(gateway, GatewayApi.rpc_logout, auth.Logout("t"))
    with pytest.raises(RateLimitError):
        await world.call(gateway, GatewayApi.rpc_logout, auth.Logout("t"))


async def test_a_gateway_goes_on_looking_after_an_error_that_nobody_thought_of(world, monkeypatch):
    gateway = await world.add_gateway()
    failed = []

    async def lookup(topic):
        failed.append(topic)
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(gateway.member.discovery, "lookup", lookup)
        while not failed:
            await pass_a_second(world)
    await world.add_processor()
    for _ in range(60):
        if gateway._directory.context(MODEL) is not None:
            break
        await pass_a_second(world)
    assert gateway._directory.context(MODEL) == CONTEXT


async def pass_a_second(world):
    world.clock.advance(1.0)
    for _ in range(100):
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
