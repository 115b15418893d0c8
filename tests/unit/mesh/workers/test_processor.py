"""A processor worker over real calls: permits first, then slots, pieces, resuming and draining."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import mesh_processor
import msgspec
import pytest
from mesh_processor import MODEL, SPROUT, Mesh, backend_of, frozen, message_of, tokens
from mesh_rpc import caught, settled
from patience import until

from tinkex.engine.models.tokenizer import load_fast_tokenizer
from tinkex.errors import (
    ConfigurationError,
    EngineBusyError,
    InputError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    StorageError,
    TrustError,
    UnsupportedError,
)
from tinkex.mesh.api.completion import ChatMessage, CompletionMessage
from tinkex.mesh.api.processor import (
    Begun,
    CountTokens,
    Ended,
    ProcessorApi,
)
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.messages import Items, decode_frame
from tinkex.mesh.transport.memory import MemoryLink
from tinkex.mesh.trust.certificates import Signed
from tinkex.mesh.trust.nonces import NonceStore
from tinkex.mesh.workers.processor import ProcessorConfig
from tinkex.mesh.workers.serving import bounds


@pytest.fixture
async def mesh(tmp_path):
    async with Mesh() as world:
        yield await world.begin(tmp_path)


async def test_request_with_a_permit_is_served(mesh):
    begun, *pieces, ended = await mesh.ask(mesh.work())
    assert isinstance(begun, Begun)
    assert (begun.prompt_tokens, begun.deterministic) == (5, True)
    assert begun.fingerprint == mesh.backend.fingerprint
    assert pieces[-1].finish_reason == "length"
    assert ended == Ended(completion_tokens=12)
    assert len(tokens(pieces)) == 12


async def test_processor_that_is_asked_to_go_on_gives_what_was_missing(mesh):
    whole = tokens(await mesh.ask(mesh.work()))
    rest = await mesh.ask(mesh.work(resume=((*whole[:7],),)))
    assert tokens(rest) == whole[7:]
    assert rest[-1].completion_tokens == 5


async def test_echo_that_no_message_could_hold_comes_in_several(mesh, monkeypatch):
    monkeypatch.setattr("tinkex.mesh.api.completion.ECHO_BYTES", 50)
    asked = message_of(n=2, max_tokens=1, echo=True, prompt_logprobs=True, top_logprobs=3)
    _, *pieces, ended = await mesh.ask(mesh.work(asked))
    for index in range(2):
        echo = [piece for piece in pieces if piece.echo and piece.index == index]
        assert len(echo) > 1
        assert "".join(piece.text for piece in echo) == "The quick brown fox"
        assert len(tokens(echo)) == 5
    assert ended.completion_tokens == 2


async def test_request_that_names_no_length_is_held_to_its_permit(mesh):
    events = await mesh.ask(mesh.work(message_of(max_tokens=None, n=2)))
    assert events[-1].completion_tokens == 40


async def test_no_work_without_a_permit_that_fits(mesh):
    good = mesh.work()
    other = KeyPair.generate()
    attacks = {
        "no permit": replace_(good, permit=b""),
        "another request": replace_(good, request=mesh.work(message_of("Other")).request),
        "another processor": mesh.work(processor=other.peer_id),
        "another gateway": mesh.work(gateway=other),
        "more tokens": replace_(
            mesh.work(message_of(max_tokens=1)), request=mesh.work(message_of()).request
        ),
        "negative completions": mesh.work(message_of(n=-1)),
    }
    for name, work in attacks.items():
        assert isinstance(await caught(mesh.ask(work)), TrustError), name
    await mesh.ask(good)
    assert "used before" in str(await caught(mesh.ask(good)))
    assert mesh.backend._jobs == 1


def replace_(work, **fields):
    return msgspec.structs.replace(work, **fields)


async def test_nothing_is_told_of_work_whose_permit_its_gateway_did_not_sign(mesh):
    good = mesh.work()
    async with mesh.stream(forged(good)) as events:
        problem = await caught(anext(events))
    assert isinstance(problem, TrustError)
    assert "signature" in str(problem)
    description = await mesh.describe()
    assert description.free_slots == description.slots
    assert isinstance(await caught(mesh.ask(good)), TrustError), "its number is used up"
    await mesh.ask(mesh.work())


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda mesh: mesh.work(message_of("many words " * 200)), "has 403"),
        (lambda mesh: mesh.work(adapter="ab"), "adapter"),
    ],
)
async def test_nor_is_it_told_what_is_wrong_with_such_work(mesh, work, told):
    assert told in str(await caught(mesh.ask(work(mesh))))
    problem = await caught(mesh.ask(forged(work(mesh))))
    assert isinstance(problem, TrustError)
    assert "signature" in str(problem)
    assert (await mesh.describe()).free_slots == mesh.backend.slots


def forged(work):
    signed = msgspec.msgpack.decode(work.permit, type=Signed)
    permit = msgspec.msgpack.encode(msgspec.structs.replace(signed, signature=bytes(64)))
    return replace_(work, permit=permit)


async def test_used_permit_is_refused_after_a_restart(tmp_path):
    used = None
    key_pair = KeyPair.generate()
    for _ in range(2):
        async with Mesh() as world:
            await world.begin(tmp_path, key_pair=key_pair)
            if used is None:
                gateway_key = world.gateway_key
                used = world.work()
                await world.ask(used)
                continue
            again = await world.peer(credentials=world.credentials(Role.GATEWAY, gateway_key))
            assert "used before" in str(await caught(world.ask(used, again)))


async def test_permit_is_kept_before_anything_is_answered(mesh, monkeypatch):
    happened = []
    keep, send = NonceStore.keep, MemoryLink.send_now

    def keeps(self):
        keep(self)
        happened.append("kept")

    def sends(self, frame):
        messages = () if self.remote != mesh.gateway_key.peer_id else decode_frame(frame)
        happened.extend("answered" for message in messages if isinstance(message, Items))
        return send(self, frame)

    await mesh.describe()  # greeted
    monkeypatch.setattr(NonceStore, "keep", keeps)
    monkeypatch.setattr(MemoryLink, "send_now", sends)
    await mesh.ask(mesh.work())
    assert happened[:2] == ["kept", "answered"]
    assert happened.count("kept") == 1


async def test_nothing_is_answered_where_the_permit_cannot_be_kept(mesh, monkeypatch):
    def fails(self):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(NonceStore, "keep", fails)
        async with mesh.stream(mesh.work()) as events:
            assert "the disk is full" in str(await caught(anext(events)))
    description = await mesh.describe()
    assert description.free_slots == description.slots
    await mesh.ask(mesh.work())


@pytest.mark.parametrize("role", [Role.CLIENT, Role.PROCESSOR, Role.AUTH, Role.BOOTSTRAP])
async def test_gateways_alone_may_ask(mesh, role):
    key_pair = KeyPair.generate()
    other = await mesh.peer(credentials=mesh.credentials(role, key_pair))
    error = await caught(mesh.ask(mesh.work(gateway=key_pair), other))
    assert isinstance(error, PermissionDeniedError)


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda mesh: mesh.work(message_of(model="other")), NotFoundError),
        (lambda mesh: mesh.work(message_of(n=0)), InputError),
        (lambda mesh: mesh.work(message_of(n=129)), InputError),
        (lambda mesh: mesh.work(resume=((1,), (2,))), InputError),
        (lambda mesh: mesh.work(finished=(0,)), InputError),
        (lambda mesh: mesh.work(resume=((1,),), finished=(1,)), InputError),
        (lambda mesh: mesh.work(resume=((1,),), finished=(0, 0)), InputError),
        (lambda mesh: mesh.work(message_of(temperature=-1.0)), InputError),
        (lambda mesh: replace_(mesh.work(), request=b"\xc1"), InputError),
        (lambda mesh: mesh.work(adapter="ab"), NotFoundError),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(mesh, work, error):
    assert isinstance(await caught(mesh.ask(work(mesh))), error)
    assert (await mesh.describe()).free_slots == mesh.backend.slots


async def test_prompt_of_more_tokens_than_gateways_reserve_is_refused_and_no_lie(
    tmp_path, monkeypatch
):
    """A gateway would take the processor for a liar, and give nobody's requests to it."""
    wordy = load_fast_tokenizer(SPROUT)
    wordy.chat_template = "{{ 'a system prompt ' * 16 }}{{ messages[0]['content'] }}"
    monkeypatch.setattr(mesh_processor, "tokenizer", lambda: wordy)
    monkeypatch.setattr(bounds, "TEMPLATE_TOKENS", 4)
    async with Mesh() as world:
        mesh = await world.begin(tmp_path, backend=backend_of())
        chat = ChatMessage([{"role": "user", "content": "hi"}])
        message = CompletionMessage(model=MODEL, prompt=chat, max_tokens=4)
        error = await caught(mesh.ask(mesh.work(message)))
        assert isinstance(error, UnsupportedError)
        assert "chat template" in str(error)
        assert (await mesh.describe()).free_slots == mesh.backend.slots
        assert tokens(await mesh.ask(mesh.work()))


async def test_full_processor_says_when_to_come_back(tmp_path):
    async with Mesh() as world:
        mesh = await world.begin(tmp_path, slots=1, most_waiting=0)
        long = message_of(max_tokens=100)
        with frozen(mesh.backend):
            async with mesh.stream(mesh.work(long)) as events:
                assert isinstance(await mesh.in_time(anext(events)), Begun)
                assert (await mesh.describe()).free_slots == 0
                error = await caught(mesh.ask(mesh.work()))
        assert isinstance(error, RateLimitError)
        assert error.retry_after_ms > 0
        # Nobody reads the first one any more: its slot is free again.
        await until(lambda: mesh.worker.service.description.free_slots == 1)
        assert tokens(await mesh.ask(mesh.work()))


async def test_slow_reader_holds_up_nobody_and_little_is_kept_for_it(mesh):
    long = message_of(max_tokens=100)
    async with mesh.stream(mesh.work(long)) as slow:
        first = await anext(slow)
        assert len(tokens(await mesh.ask(mesh.work(long)))) == 100
        rest = [first, *[event async for event in slow]]
    assert len(tokens(rest)) == 100


async def test_processor_says_what_it_has(mesh):
    found = await mesh.describe()
    assert [(one.name, one.backend, one.max_context_length) for one in found.models] == [
        ("tiny", "engine", 128)
    ]
    assert (found.slots, found.free_slots, found.waiting, found.adapters) == (64, 64, 0, ())
    counted = await mesh.gateway.call(
        mesh.contact,
        ProcessorApi.rpc_count_tokens,
        CountTokens(request=message_of()),
        timeout_s=60,
    )
    assert counted.tokens == 5


async def test_announced_as_long_as_it_serves(mesh):
    looker = mesh.found.member(mesh.gateway.contact, mesh.trust.peer(Role.GATEWAY).certificate)
    for topic in ("processor", "model:tiny"):
        (record,) = await looker.lookup(topic)
        assert (record.models, record.free_slots) == (("tiny",), 64)
    with frozen(mesh.backend):
        async with mesh.stream(mesh.work()) as events:
            await mesh.in_time(anext(events))
            mesh.clock.advance(1.1)
            await settled()
            assert (await looker.lookup("processor"))[0].free_slots == 63
    await mesh.worker.stop()
    assert [await looker.lookup(topic) for topic in ("processor", "model:tiny")] == [(), ()]


async def test_draining_ends_what_runs_and_takes_nothing_new(mesh):
    async with mesh.stream(mesh.work(message_of(max_tokens=100))) as events:
        with frozen(mesh.backend):
            seen = [await mesh.in_time(anext(events))]
            stopping = asyncio.ensure_future(mesh.worker.stop(grace_s=30))
            await until(lambda: mesh.worker.service.leaving)
            assert isinstance(await caught(mesh.ask(mesh.work())), EngineBusyError)
        seen += [event async for event in events]
    await asyncio.wait_for(stopping, 20)
    assert seen[-1].completion_tokens == 100


async def test_drain_ends_with_its_time(mesh):
    async with mesh.stream(mesh.work(message_of(max_tokens=100))) as events:
        with frozen(mesh.backend):
            await mesh.in_time(anext(events))
            stopping = asyncio.ensure_future(mesh.worker.stop(grace_s=3))
            await until(lambda: mesh.worker.service.leaving)
            await mesh.pass_time(4, step=0.5)
        await asyncio.wait_for(stopping, 20)


def test_settings_that_cannot_be_are_told_at_once():
    with pytest.raises(ConfigurationError, match=r"slots.*announce_s.*most_waiting"):
        ProcessorConfig(slots=0, most_waiting=-1, announce_s=0)
    assert replace(ProcessorConfig(), slots=3).slots == 3
