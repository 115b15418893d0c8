"""A network around one gateway: scripted processors and a scripted auth worker, over real calls."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec
from mesh_rpc import SkewedClock, World, until
from mesh_scripted import pieces, prompt_ids

from tinkex.errors import AuthenticationError, BillingError, LinkClosedError
from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.accounts.scopes import SCOPES
from tinkex.mesh.api import auth
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.gateway import Accepted, Complete, Finished, GatewayApi, Receipt, Resumed
from tinkex.mesh.api.processor import (
    Begun,
    Counted,
    Description,
    Ended,
    ProcessorApi,
    ServedModel,
    Work,
)
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.usage import decode_usage
from tinkex.mesh.workers.client import ClientConfig, ClientWorker
from tinkex.mesh.workers.gateway import GatewayConfig, GatewayWorker
from tinkex.testing import VirtualClock
from tinkex.testing.discovery import MemoryDiscovery

MODEL = "tinkex/sprout"
CONTEXT = 256


class ScriptedProcessor(ProcessorApi):
    """Samples from `mesh_scripted`. What it does wrong is set from outside.

    Attributes:
        works: what it was asked for.
        hold_begun: while set and not done, `Begun` waits for it.
        lose_after: so many pieces, then its links are lost.
        raises: raised instead of beginning, or after `lose_after` pieces if that is set.
        change: turns its list of messages into another.
        describes: what it raises when it is asked what it has.
        context: tokens that its models take.
        counts: what it raises when it is to count a prompt.
        paused: once that many pieces were sent, it waits for `resume_sending`.
    """

    def __init__(self, *, fingerprint="avx2", deterministic=True, seed=0, revision="r1"):
        self.fingerprint = fingerprint
        self.deterministic = deterministic
        self.revision = revision
        self.rng = random.Random(seed)
        self.works = []
        self.hold_begun = None
        self.lose_after = None
        self.raises = None
        self.change = list
        self.pause_after = None
        self.resume_sending = asyncio.Event()
        self.cancelled = 0
        self.free_slots = 4
        self.waiting = 0
        self.models = [MODEL]
        self.adapters = ()
        self.lose = None
        self.describes = None
        self.context = CONTEXT
        self.counts = None

    async def rpc_describe(self, request, call: Call):
        if self.describes is not None:
            raise self.describes
        served = tuple(
            ServedModel(
                name=name,
                max_context_length=self.context,
                revision=self.revision,
                backend="engine",
                adapters=True,
            )
            for name in self.models
        )
        return Description(
            models=served,
            adapters=self.adapters,
            fingerprint=self.fingerprint,
            slots=4,
            free_slots=self.free_slots,
            waiting=self.waiting,
        )

    async def rpc_count_tokens(self, request, call: Call):
        if self.counts is not None:
            raise self.counts
        return Counted(len(prompt_ids(request.request)))

    async def rpc_complete(self, request, call: Call):
        self.works.append(request)
        try:
            if self.hold_begun is not None:
                await self.hold_begun.wait()
            if self.raises is not None and self.lose_after is None:
                raise self.raises
            for place, event in enumerate(self.change(self.events(request))):
                if self.pause_after is not None and place == self.pause_after + 1:
                    await self.resume_sending.wait()
                if self.lose_after is not None and place == self.lose_after + 1:
                    if self.raises is not None:
                        raise self.raises
                    await asyncio.sleep(0)  # noqa: TID251 - what was sent is on its way
                    self.lose()
                    await asyncio.Event().wait()
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    def events_of_default(self):
        """What it sends for `completion_message()`, if asked now; draws nothing."""
        before = self.rng.getstate()
        message = msgspec.msgpack.encode(completion_message())
        events = self.events(Work(permit=b"", request=message))
        self.rng.setstate(before)
        return events

    def events(self, work):
        message = msgspec.msgpack.decode(work.request, type=CompletionMessage)
        sent = list(pieces(message, work.resume, work.finished, self.rng))
        sampled = sum(len(piece.tokens) for piece in sent if not piece.echo)
        if message.prompt_logprobs:
            sent.sort(key=lambda piece: not piece.echo)
        return [
            Begun(
                prompt_tokens=len(prompt_ids(message)),
                fingerprint=self.fingerprint,
                deterministic=self.deterministic,
            ),
            *sent,
            Ended(completion_tokens=sampled),
        ]


class ScriptedAuth(AuthApi):
    """Gives leases of `lease_tokens`, out of `quota`; notes what it is asked.

    The other calls answer with what is set in `answers`, by request type.
    """

    def __init__(self, clock):
        self.clock = clock
        self.quota = 1_000_000
        self.lease_tokens = 5_000
        self.lease_s = 60.0
        self.given = {}
        self.settled = {}
        self.asked = []
        self.answers = {}

    async def rpc_lease(self, request, call: Call):
        self.asked.append(request)
        if request.tokens > self.quota:
            raise BillingError("used up")
        tokens = max(request.tokens, min(self.lease_tokens, self.quota))
        self.quota -= tokens
        lease = auth.Lease(f"lease{len(self.given)}", tokens, request.now + self.lease_s)
        self.given[lease.lease_id] = tokens
        return lease

    async def rpc_settle(self, request, call: Call):
        self.settled[request.lease_id] = request.used_tokens
        self.quota += self.given[request.lease_id] - request.used_tokens
        return auth.Done()

    async def _answer(self, request, call: Call):
        self.asked.append(request)
        answer = self.answers[type(request)]
        if isinstance(answer, Exception):
            raise answer
        return await answer() if callable(answer) else answer

    async def rpc_join(self, request: auth.Join, call: Call) -> auth.Joined:
        return await self._answer(request, call)

    rpc_renew = rpc_register = rpc_login = rpc_refresh = rpc_logout = rpc_create_key = _answer
    rpc_list_keys = rpc_revoke_key = rpc_close_account = rpc_usage = rpc_change_password = _answer


def caller_of(account_id="ann", key_id="k1", scopes=SCOPES):
    return Caller(account_id=account_id, key_id=key_id, scopes=scopes)


class Accounts:
    """Knows credentials by heart."""

    def __init__(self):
        self.known = {"right": caller_of(), "bob": caller_of("bob", "k2")}

    def verify(self, credential, now):
        if credential not in self.known:
            raise AuthenticationError("the API key is not known here")
        return self.known[credential]

    async def current(self):
        pass


class ScriptedNews:
    """Auth workers that were heard of just now, and give what is set."""

    def __init__(self):
        self.age = 0.0
        self.asked = 0
        self.gives = True

    def age_s(self):
        return self.age

    async def ask(self, timeout_s):
        self.asked += 1
        return await self.gives() if callable(self.gives) else self.gives


@dataclass
class Member:
    """What a gateway needs of the worker that it is."""

    key_pair: object
    peers: object
    discovery: object
    feeds: object
    clock: object


@dataclass
class GatewayWorld(World):
    """One gateway, a client, and as many processors as are added."""

    path: object = None
    settings: GatewayConfig = field(default_factory=GatewayConfig)

    def __post_init__(self):
        super().__post_init__()
        self.board = MemoryDiscovery(clock=self.clock)
        self.auth = ScriptedAuth(self.clock)
        self.accounts = Accounts()
        self.news = ScriptedNews()
        self.processors = []
        self.gateways = []
        self.clients = []

    async def __aenter__(self):
        await self.add_auth(self.auth)
        self.client = await self.peer(Role.CLIENT)
        return self

    async def __aexit__(self, *error):
        for client in self.clients:
            await asyncio.wait_for(client.stop(), 20)
        for gateway, feeds in self.gateways:
            await asyncio.wait_for(gateway.stop(), 20)
            await feeds.close()
        await super().__aexit__(*error)

    async def crash(self, gateway):
        """End a gateway without letting it write or say anything."""
        ((_, feeds),) = [one for one in self.gateways if one[0] is gateway]
        self.gateways = [one for one in self.gateways if one[0] is not gateway]
        await feeds.close()
        self.cut(gateway.member.peers)
        for task in list(gateway._tasks._running):
            task.cancel()
        await gateway._timers.stop()
        await gateway.member.peers.stop()

    async def look_again(self, gateway):
        """Have a gateway look for processors."""
        await gateway._directory.refresh()

    async def announced(self, role, service, topic, offer):
        peers = await self.peer(role, service)
        certificate = self.trust.peer(role, peers.credentials.key_pair).certificate
        self.board.put(topic, offer, peers.contact, certificate)
        return peers

    async def add_auth(self, service):
        return await self.announced(Role.AUTH, service, "auth", Offer())

    async def add_processor(self, processor=None, **options):
        processor = processor or ScriptedProcessor(**options)
        peers = await self.announced(
            Role.PROCESSOR, processor, "processor", Offer(models=tuple(processor.models))
        )
        processor.peers = peers
        processor.lose = lambda: self.cut(peers)
        self.processors.append(processor)
        return processor

    def cut(self, peers):
        """Lose all links of a peer, and let nobody reach it again."""
        self.board.drop(peers.contact)
        for channel in peers._links.all:
            channel.end(LinkClosedError("cut"), lost=True)

    async def add_gateway(self, name="gateway", key_pair=None, skew_s=0.0):
        clock = SkewedClock(self.clock, skew_s)
        peers = await self.peer(credentials=self.credentials(Role.GATEWAY, key_pair))
        feeds = FeedStore(
            self.path / f"{name}.sqlite",
            peers.credentials,
            clock=clock,
            inline=isinstance(self.clock, VirtualClock),
        )
        await feeds.open()
        certificate = self.trust.peer(Role.GATEWAY, peers.credentials.key_pair).certificate
        member = Member(
            peers.credentials.key_pair,
            peers,
            self.board.member(peers.contact, certificate),
            feeds,
            clock,
        )
        gateway = GatewayWorker(
            member,
            self.accounts,
            self.news,
            is_revoked=self.trust.is_revoked,
            config=self.settings,
            rng=random.Random(7),
        )
        gateway.contact = peers.contact
        gateway.feeds = feeds
        gateway.peer_id = peers.peer_id
        gateway.key_pair = peers.credentials.key_pair
        gateway.member = member
        self.gateways.append((gateway, feeds))
        await gateway.start()
        return gateway

    async def add_client(self, **settings):
        """A client worker without HTTP, unless `settings` say otherwise."""
        peers = await self.peer(Role.CLIENT)
        certificate = self.trust.peer(Role.CLIENT, peers.credentials.key_pair).certificate
        member = Member(
            peers.credentials.key_pair,
            peers,
            self.board.member(peers.contact, certificate),
            None,
            self.clock,
        )
        client = ClientWorker(
            member, ClientConfig(**({"host": None, "port": 0} | settings)), rng=random.Random(3)
        )
        client.member = member
        self.clients.append(client)
        await client.start()
        return client

    def complete(self, gateway, *, credential="right", timeout_s=60.0, **changes):
        """Ask for a completion; the stream of events."""
        return self.client.stream(
            gateway.contact,
            GatewayApi.rpc_complete,
            Complete(credential=credential, request=completion_message(**changes)),
            timeout_s=timeout_s,
        )

    async def answer(self, gateway, **changes):
        """Ask, and return all of it."""
        found = Answer(completion_message(**{k: v for k, v in changes.items() if k in FIELDS}))
        async with aclosing(self.complete(gateway, **changes)) as events:
            async for event in events:
                found.add(event)
        return found

    async def call(self, gateway, method, request):
        return await self.client.call(gateway.contact, method, request, timeout_s=10)

    async def usage(self, gateway):
        """The entries of a gateway's usage feed."""
        return [
            decode_usage(entry.payload)
            async for entry in gateway.feeds.entries("usage", author=gateway.peer_id)
        ]


FIELDS = frozenset(CompletionMessage.__struct_fields__)


def completion_message(**changes):
    given = {"model": MODEL, "prompt": TextMessage("hello"), "max_tokens": 12, "seed": 5}
    return CompletionMessage(**(given | changes))


class Answer:
    """A stream, put together."""

    def __init__(self, message):
        self.message = message
        self.events = []
        self.accepted = None
        self.resumed = []
        self.finished = None
        self.receipt = None
        self.tokens = [[] for _ in range(message.n)]
        self.texts = ["" for _ in range(message.n)]
        self.echoes = ["" for _ in range(message.n)]
        self.reasons = [None for _ in range(message.n)]

    def add(self, event):
        assert self.receipt is None, "the receipt is the last"
        assert (self.accepted is None) == isinstance(event, Accepted)
        self.events.append(event)
        if isinstance(event, Accepted):
            self.accepted = event
        elif isinstance(event, Resumed):
            self.resumed.append(event)
        elif isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Receipt):
            assert self.finished is not None
            self.receipt = event
        else:
            assert isinstance(event, PieceMessage)
            if event.echo:
                self.echoes[event.index] += event.text
                return
            assert self.reasons[event.index] is None
            self.tokens[event.index] += [token.token for token in event.tokens]
            self.texts[event.index] += event.text
            self.reasons[event.index] = event.finish_reason


__all__ = ["CONTEXT", "MODEL", "GatewayWorld", "ScriptedProcessor", "completion_message", "until"]
