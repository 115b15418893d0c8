"""Attacks on a whole network: real workers, over real links, with everything in place.

What each layer refuses by itself is `test_every_attack.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing

import msgspec
import openai
import pytest
from mesh_attacks.files import adapter, flipped
from mesh_rpc import caught
from mesh_whole import MODEL, PASSWORD, PATIENCE_S, Network, processor, text_of

from tinkex.errors import APIStatusError, PermissionDeniedError, TrustError
from tinkex.mesh.api import auth
from tinkex.mesh.api.blobs import BlobApi, Chunk, FetchChunks, FetchManifest
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.gateway import GatewayApi, PublishAdapter
from tinkex.mesh.api.processor import Ended, ProcessorApi, Work
from tinkex.mesh.blobs.service import BlobService
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.permits import PERMIT_S, make_blob_permit, make_permit
from tinkex.mesh.workers.processing import Processor
from tinkex.mesh.workers.processor import ProcessorWorker


@pytest.fixture(params=["tls", pytest.param("iroh", marks=pytest.mark.soak)])
async def network(request, tmp_path):
    made = Network(tmp_path / "net", request.param)
    async with made.stack:
        made.auth = await made.start(Role.AUTH)
        made.contact = made.auth.member.contact
        yield made


async def join(network, name, role, **options):
    return await network.start(role, network.contact, name=name, **options)


async def user(client, email="ann@example.org"):
    """Register, and make a key."""
    await client.inner.ask(GatewayApi.rpc_register, auth.Register(email, PASSWORD))
    session = await client.inner.ask(GatewayApi.rpc_login, auth.Login(email, PASSWORD))
    request = auth.CreateKey(
        session.access_token, "laptop", scopes=frozenset({"infer", "read", "publish"})
    )
    return (await client.inner.ask(GatewayApi.rpc_create_key, request)).key


def program(client, key):
    """One of OpenAI's package, at a client worker."""
    return openai.AsyncOpenAI(base_url=f"{client.inner.url}/v1", api_key=key, max_retries=0)


async def said(asking, model=MODEL):
    """What a program gets: the text, and how many tokens it is told of."""
    reply = await asking.completions.create(
        model=model, prompt="hello", max_tokens=8, temperature=0
    )
    return reply.choices[0].text, reply.usage.completion_tokens


async def known(network, gateway, *processors):
    """Wait until a gateway has heard what some processors have."""
    wanted = {one.member.key_pair.peer_id for one in processors}
    await network.until(lambda: wanted <= gateway.inner._directory._known.keys())


# --- a fake gateway that collects passwords -------------------------------------------------------


class Collector:
    """Offers a gateway's calls, and keeps what it is told."""

    def __init__(self):
        self.heard = []

        async def collect(_, request, call):
            self.heard.append(request)
            raise PermissionDeniedError("come back later")

        methods = {name: collect for name in vars(GatewayApi) if name.startswith("rpc_")}
        self.service = type("Collecting", (GatewayApi,), methods)()


class Misled:
    """Discovery that believes the thief."""

    def __init__(self, record):
        self.record = record

    async def lookup(self, topic):
        return (self.record,)


async def test_a_processor_that_calls_itself_a_gateway_is_told_no_password(network):
    thief = await join(network, "thief", Role.PROCESSOR, build=processor())
    collector = Collector()
    thief.member.peers.serve(collector.service)
    thief.member.discovery._announcer._check_allowed = lambda topic: None
    await thief.member.discovery.announce("gateway", Offer())
    client = await join(network, "client", Role.CLIENT)
    login = auth.Login("ann@example.org", PASSWORD)
    error = await caught(client.inner.ask(GatewayApi.rpc_login, login))
    assert isinstance(error, APIStatusError)
    assert "none is announced" in str(error)
    # and where somebody believes the announcement
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await client.member.discovery.lookup("processor")):
            await network.clock.sleep(0.1)
    (record,) = found
    client.inner._gateways._discovery = Misled(record)
    error = await caught(client.inner.ask(GatewayApi.rpc_login, login))
    assert isinstance(error, APIStatusError)
    assert "may not be asked" in str(error)
    assert collector.heard == []


# --- a processor's permits ------------------------------------------------------------------------


def work_for(gateway, target, *, now, **changes):
    asked = CompletionMessage(model=MODEL, prompt=TextMessage("hello"), max_tokens=8)
    message = msgspec.msgpack.encode(asked)
    fields = {
        "processor": target.member.key_pair.peer_id,
        "account": "ann",
        "model": MODEL,
        "request": message,
        "max_tokens": 8,
        "expires_at": now + PERMIT_S,
    }
    permit = make_permit(gateway.member.key_pair, **(fields | changes))
    return Work(permit=permit, request=message)


async def completed(gateway, target, work):
    """The text that a gateway gets for a permit."""
    events = gateway.member.peers.stream(
        target.member.contact, ProcessorApi.rpc_complete, work, timeout_s=PATIENCE_S
    )
    async with aclosing(events):
        return "".join([one.text async for one in events if isinstance(one, PieceMessage)])


async def test_a_processor_works_for_a_permit_of_its_own_and_once(network):
    gateway = await join(network, "gateway", Role.GATEWAY)
    other = await join(network, "gateway-2", Role.GATEWAY)
    target = await join(network, "target", Role.PROCESSOR, build=processor())
    now, expected = network.clock.now(), text_of("hello")

    async def refused(asking, work, words):
        error = await caught(completed(asking, target, work))
        assert isinstance(error, TrustError), error
        assert words in str(error)

    good = work_for(gateway, target, now=now)
    await refused(gateway, Work(permit=b"", request=good.request), "no permit")
    foreign = work_for(gateway, target, now=now, processor=other.member.key_pair.peer_id)
    await refused(gateway, foreign, "another processor")
    await refused(other, good, "another gateway")
    assert await completed(gateway, target, good) == expected
    await refused(gateway, good, "used before")
    late = work_for(gateway, target, now=now)
    assert await completed(gateway, target, late) == expected

    await target.stop()
    target = await network.start(Role.PROCESSOR, name="target", build=processor())
    for used in (good, late):
        await refused(gateway, used, "used before")
    fresh = work_for(gateway, target, now=now)
    assert await completed(gateway, target, fresh) == expected
    client = await join(network, "client", Role.CLIENT)
    error = await caught(completed(client, target, work_for(client, target, now=now)))
    assert isinstance(error, PermissionDeniedError)


# --- a private adapter ----------------------------------------------------------------------------


class Flipping(BlobApi):
    """Gives each chunk with one bit turned."""

    def __init__(self, inner):
        self.inner, self.asked = inner, 0

    async def rpc_manifest(self, request, call):
        return await self.inner.rpc_manifest(request, call)

    async def rpc_chunks(self, request, call):
        async for chunk in self.inner.rpc_chunks(request, call):
            self.asked += 1
            yield Chunk(chunk.file, chunk.chunk, flipped(chunk.data))


def flip_what_it_gives(worker):
    """Turn a client into one that holds an adapter and gives it away changed."""
    offered = worker.member.peers._around.dispatcher._offered
    service = Flipping(offered["blobs.manifest"].handler.__self__)
    assert isinstance(service.inner, BlobService)
    for path in [path for path in offered if path.startswith("blobs.")]:
        del offered[path]
    worker.member.peers.serve(service)
    return service


async def test_a_private_adapter_is_its_owners_and_no_byte_of_it_anothers(network, tmp_path):
    gateway = await join(network, "gateway", Role.GATEWAY)
    target = await join(network, "target", Role.PROCESSOR, build=processor())
    await known(network, gateway, target)
    owner = await join(network, "owner", Role.CLIENT)
    liar = await join(network, "liar", Role.CLIENT)
    files = adapter(tmp_path / "adapter")
    content = owner.inner._shelf._store.add(files)
    assert liar.inner._shelf._store.add(files) == content
    lying = flip_what_it_gives(liar)
    topic = f"adapter:{content}"
    await owner.member.discovery.announce(topic, Offer(adapters=(content,), load=1.0))
    await liar.member.discovery.announce(topic, Offer(adapters=(content,)))  # likelier: idle

    ann, eve = await user(owner), await user(liar, "eve@example.org")
    await owner.inner.ask(
        GatewayApi.rpc_publish,
        PublishAdapter(credential=ann, name="fruit", base_model=MODEL, content=content),
    )
    async with program(owner, ann) as hers:
        assert await said(hers, "fruit") == (text_of("hello", content), 8)
    assert lying.asked > 0, "the liar was asked first, and was not believed"
    held = target.member.folder.path / "adapters" / content / "adapter_model.safetensors"
    assert held.read_bytes() == (files / "adapter_model.safetensors").read_bytes()

    async with program(liar, eve) as another:
        for name in ("fruit", f"{MODEL};fruit", content, f"{MODEL};{content}"):
            with pytest.raises(openai.NotFoundError):
                await said(another, name)
    own = make_blob_permit(
        liar.member.key_pair,
        fetcher=liar.member.key_pair.peer_id,
        account="eve",
        content=content,
        expires_at=network.clock.now() + PERMIT_S,
    )
    shown = liar.member.membership.certificate
    for source in (owner, target):
        for permit, certificate in ((own, shown), (b"", b""), (own, b"")):
            fields = {"content": content, "permit": permit, "certificate": certificate}
            peers, contact = liar.member.peers, source.member.contact
            manifest = peers.call(
                contact, BlobApi.rpc_manifest, FetchManifest(**fields), timeout_s=PATIENCE_S
            )
            assert isinstance(await caught(manifest), TrustError)
            chunks = peers.stream(
                contact,
                BlobApi.rpc_chunks,
                FetchChunks(**fields, chunks=((0, 0),)),
                timeout_s=PATIENCE_S,
            )
            assert isinstance(await caught(anext(chunks)), TrustError)


# --- a processor that lies ------------------------------------------------------------------------


class Lying(Processor):
    """Counts its requests, and lies in what it sends; see the subclasses."""

    asked = 0

    def lie(self, event):
        raise NotImplementedError

    async def rpc_complete(self, request, call):
        self.asked += 1
        async for event in super().rpc_complete(request, call):
            yield self.lie(event)


class Claiming(Lying):
    """Claims more tokens than it made."""

    def lie(self, event):
        if isinstance(event, Ended):
            return msgspec.structs.replace(event, completion_tokens=1000)
        return event


class Garbling(Lying):
    """Returns garbage."""

    def lie(self, event):
        if isinstance(event, PieceMessage):
            return msgspec.structs.replace(event, index=7, text="\x00" * 99)
        return event


def lying(kind):
    """The build of a worker that answers so."""
    made = {"made_service": lambda _, *parts: kind(*parts)}
    return processor(type("LyingWorker", (ProcessorWorker,), made))


async def test_processors_that_lie_are_believed_nothing_paid_nothing_and_asked_no_more(network):
    gateway = await join(network, "gateway", Role.GATEWAY)
    liars = [
        await join(network, kind.__name__, Role.PROCESSOR, build=lying(kind))
        for kind in (Claiming, Garbling)
    ]
    client = await join(network, "client", Role.CLIENT)
    key = await user(client)
    await known(network, gateway, *liars)
    services = [liar.inner.service for liar in liars]
    seen = 0
    async with program(client, key) as asking:
        # One gives what is right and claims more, the other gives what nobody can use.
        while not all(service.asked for service in services):
            with contextlib.suppress(openai.InternalServerError):
                assert await said(asking) == (text_of("hello"), 8)
                seen += 8
        with pytest.raises(openai.InternalServerError, match="No processor is left"):
            await said(asking)
        await known(
            network, gateway, await join(network, "honest", Role.PROCESSOR, build=processor())
        )
        for _ in range(4):
            assert await said(asking) == (text_of("hello"), 8)
            seen += 8
    assert [service.asked for service in services] == [1, 1]

    counted = 0
    async with asyncio.timeout(PATIENCE_S):
        while counted < seen:
            await network.clock.sleep(0.05)
            report = await client.inner.ask(GatewayApi.rpc_usage, auth.UsageQuery(key, 0.0))
            counted = sum(entry.completion_tokens for entry in report.entries)
    assert counted == seen
