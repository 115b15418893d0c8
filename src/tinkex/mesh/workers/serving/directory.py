"""The processors that a gateway knows: found by their announcements, asked what they have.

Owns the looking and asking, and what came of it. An announcement says that a processor is there;
how busy it is, it says itself, every few seconds. Who gets a request is `balancer`'s to choose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tinkex._clock import Clock
from tinkex.errors import ConfigurationError, PeerProtocolError, TinkerError
from tinkex.mesh.api.processor import Describe, Description, ProcessorApi, ServedModel
from tinkex.mesh.balancer import Balancer, Offer
from tinkex.mesh.dht.records import MAX_TOPIC_CHARACTERS, Record
from tinkex.mesh.identity import PeerId
from tinkex.mesh.positive import not_positive
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S
from tinkex.mesh.workers.discovery import Discovery, model_topic

MAX_SLOTS = 1 << 16
LATELY_S = 600.0
"""A model that somebody ran within so many seconds may be back soon, as after a restart."""
MOST_LATE_MODELS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryConfig:
    """How often processors are looked for. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    refresh_s: float = 2.0
    """Between two rounds."""
    describe_timeout_s: float = 2.0
    """A processor that has not said by then what it has is not there."""
    description_s: float = 15.0
    """What a processor said counts for so long, and never longer than its announcement."""
    asked_at_once: int = 32
    """Processors that are asked at the same time."""
    asked_models: int = 64
    """Models whose own topics are looked up too: the last that were asked for."""

    def __post_init__(self) -> None:
        if problems := not_positive(self):
            raise ConfigurationError(problems)


@dataclass(slots=True, eq=False)
class _Known:
    contact: Contact
    description: Description


class Directory:
    """Keeps the balancer informed.

    Args:
        peers: asks processors.
        discovery: finds them.
        balancer: is told.
        is_revoked: whether a peer was shut out.
        clock: tells the time.
        config: how often.
    """

    def __init__(
        self,
        peers: Peers,
        discovery: Discovery,
        balancer: Balancer,
        *,
        is_revoked: Callable[[PeerId], bool],
        clock: Clock,
        config: DirectoryConfig,
    ) -> None:
        self._peers = peers
        self._discovery = discovery
        self._balancer = balancer
        self._is_revoked = is_revoked
        self._clock = clock
        self._config = config
        self._known: dict[PeerId, _Known] = {}
        self._asked: dict[str, float] = {}
        """Models that were looked for, and when last, in monotonic seconds; the latest last."""
        self._ran_at: dict[str, float] = {}
        """When somebody last said that it runs a model, in monotonic seconds, the latest last."""
        self._silent: set[PeerId] = set()
        """Processors that were lost, or did not answer when they were last asked."""
        self._refreshing: asyncio.Task[None] | None = None
        self.gateways = 1
        """How many there are, as far as was seen; this one included."""

    async def run(self) -> None:
        """Look for processors again and again, until cancelled."""
        while True:
            await self.refresh()
            await self._clock.sleep(self._config.refresh_s)

    async def refresh(self) -> None:
        """Look for processors now; callers at the same time share one round."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="look for processors")
        await asyncio.shield(self._refreshing)

    async def look_for(self, model: str) -> None:
        """Look for processors of a base model that none of those known has.

        A name that no topic can hold is nobody's: nobody could announce it.
        """
        if len(model_topic(model)) > MAX_TOPIC_CHARACTERS:
            return
        self._asked.pop(model, None)
        self._asked[model] = self._clock.monotonic()
        if len(self._asked) > self._config.asked_models:
            del self._asked[next(iter(self._asked))]
        await self._look_until(lambda: self.context(model) is not None)

    async def look(self) -> None:
        """Look for processors where none is known: one may have come since the last round."""
        await self._look_until(lambda: any(self._served()))

    async def _look_until(self, found: Callable[[], bool]) -> None:
        """Look, in a round that begins from now on if the one under way does not find it."""
        if found():
            return
        if self._refreshing is not None and not self._refreshing.done():
            # That round looks for what was asked for when it began.
            await asyncio.shield(self._refreshing)
            if found():
                return
        await self.refresh()

    def lost(self, peer: PeerId) -> None:
        """Take note that the link to a peer was lost: left alone until it answers again."""
        if peer in self._known:
            self._unanswered(peer)

    def _unanswered(self, peer: PeerId) -> None:
        self._silent.add(peer)
        self._balancer.failed(peer, self._clock.monotonic())

    def contact(self, peer: PeerId) -> Contact | None:
        """Say where a processor is."""
        known = self._known.get(peer)
        return None if known is None else known.contact

    def models(self) -> dict[str, list[ServedModel]]:
        """List the base models, with what each processor says of them."""
        found: dict[str, list[ServedModel]] = {}
        for model in self._served():
            found.setdefault(model.name, []).append(model)
        return found

    def context(self, model: str) -> int | None:
        """Return the longest context of a base model here, in tokens; None: nobody runs it."""
        longest = None
        for one in self._served():
            if one.name == model and (longest is None or one.max_context_length > longest):
                longest = one.max_context_length
        return longest

    def lately(self, model: str) -> bool:
        """Whether somebody ran a base model a while ago."""
        return self._clock.monotonic() - self._ran_at.get(model, float("-inf")) < LATELY_S

    def _served(self) -> Iterator[ServedModel]:
        for offer in self._balancer.offers(self._clock.monotonic()):
            known = self._known.get(offer.peer)
            if known is not None:
                yield from known.description.models

    async def close(self) -> None:
        """Stop looking."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    async def _refresh(self) -> None:
        self._forget_asked()
        topics = [Role.PROCESSOR.value, *(model_topic(name) for name in self._asked)]
        *found, gateways = await asyncio.gather(
            *(self._discovery.lookup(topic) for topic in (*topics, Role.GATEWAY.value))
        )
        self.gateways = max(1, len(gateways))
        records = {
            record.contact.peer_id: record
            for some in found
            for record in some
            if not self._is_revoked(record.contact.peer_id)
        }
        for peer in self._known.keys() - records.keys():
            del self._known[peer]
            self._balancer.withdrew(peer)
        self._silent &= records.keys()
        places = asyncio.Semaphore(self._config.asked_at_once)

        async def ask(record: Record) -> None:
            async with places:
                await self._ask(record)

        await asyncio.gather(*(ask(record) for record in records.values()))

    def _forget_asked(self) -> None:
        """Look no more for what nobody runs and nobody has asked for lately, as a name mistyped."""
        since = self._clock.monotonic() - LATELY_S
        for name in [name for name, at in self._asked.items() if at < since]:
            if self.context(name) is None:
                del self._asked[name]

    async def _ask(self, record: Record) -> None:
        contact, config = record.contact, self._config
        # By its publisher's clock, which may be as wrong as one's own.
        left = record.expires_at + CLOCK_SKEW_S - self._clock.now()
        if left <= 0:
            return
        expires_at = self._clock.monotonic() + min(left, config.description_s)
        try:
            said = await self._peers.call(
                contact,
                ProcessorApi.rpc_describe,
                Describe(),
                timeout_s=config.describe_timeout_s,
            )
            offer = offer_of(contact.peer_id, said, expires_at)
        except PeerProtocolError:
            self._balancer.misbehaved(contact.peer_id, self._clock.monotonic())
        except TinkerError:
            self._unanswered(contact.peer_id)
        else:
            self._known[contact.peer_id] = _Known(contact, said)
            self._note_ran(said)
            self._balancer.heard(offer)
            if contact.peer_id in self._silent:
                self._silent.remove(contact.peer_id)
                self._balancer.back(contact.peer_id)

    def _note_ran(self, said: Description) -> None:
        for model in said.models:
            self._ran_at.pop(model.name, None)
            self._ran_at[model.name] = self._clock.monotonic()
        while len(self._ran_at) > MOST_LATE_MODELS:
            del self._ran_at[next(iter(self._ran_at))]


def offer_of(peer: PeerId, said: Description, expires_at: float) -> Offer:
    """Turn what a processor says into an offer.

    Raises:
        PeerProtocolError: its numbers make no sense.
    """
    if not (
        0 < said.slots <= MAX_SLOTS
        and 0 <= said.free_slots <= said.slots
        and said.waiting >= 0
        and all(model.max_context_length > 0 for model in said.models)
    ):
        raise PeerProtocolError(f"processor {peer.short} says numbers that make no sense")
    return Offer(
        peer,
        {model.name: model.revision for model in said.models},
        said.fingerprint,
        said.slots,
        said.free_slots,
        said.waiting,
        expires_at,
        frozenset(said.adapters),
        frozenset(model.name for model in said.models if model.adapters),
        {model.name: model.max_context_length for model in said.models},
    )
