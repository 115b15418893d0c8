"""The gateway worker: lets clients' requests in, has processors do them, keeps the books.

Owns putting the parts together, in which order they start and stop, and what goes on by itself: the
announcement, looking for processors, giving leases back. Each part is in `workers.serving`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from random import Random, SystemRandom
from typing import Protocol

from tinkex._timers import Timers
from tinkex.errors import ConfigurationError, TinkerError
from tinkex.mesh.balancer import Balancer, BalancerConfig
from tinkex.mesh.catalog import AdapterCatalog, decode_catalog
from tinkex.mesh.deadline import within
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.policy import ADAPTERS, USAGE
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.identity import PeerId
from tinkex.mesh.positive import not_positive
from tinkex.mesh.roles import Role
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.workers.authority.books import usage_view
from tinkex.mesh.workers.base import Linked, Worker
from tinkex.mesh.workers.reading import Reading
from tinkex.mesh.workers.serving.admission import Accounts, Admission, AdmissionConfig
from tinkex.mesh.workers.serving.api import Gateway
from tinkex.mesh.workers.serving.auth_calls import AuthCalls
from tinkex.mesh.workers.serving.completion import CompletionService
from tinkex.mesh.workers.serving.directory import Directory, DirectoryConfig
from tinkex.mesh.workers.serving.dispatch import Dispatch, DispatchConfig
from tinkex.mesh.workers.serving.freshness import Freshness, FreshnessConfig, News
from tinkex.mesh.workers.serving.ledger import Ledger

_LOG = logging.getLogger("tinkex.mesh.gateway")


class GatewayMember(Linked, Protocol):
    """What a gateway needs of the worker that it is."""

    @property
    def feeds(self) -> FeedStore:
        """Its feeds, open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Settings of a gateway. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    balancer: BalancerConfig = field(default_factory=BalancerConfig)
    directory: DirectoryConfig = field(default_factory=DirectoryConfig)
    dispatch: DispatchConfig = field(default_factory=DispatchConfig)
    freshness: FreshnessConfig = field(default_factory=FreshnessConfig)
    announce_s: float = 5.0
    """Between two announcements of how busy it is."""
    sweep_s: float = 5.0
    """Between two looks for leases whose time is over."""

    def __post_init__(self) -> None:
        if problems := not_positive(self):
            raise ConfigurationError(problems)


class GatewayWorker(Worker):
    """Serves clients.

    Args:
        member: the worker that it is.
        accounts: checks credentials, offline.
        news: says how old what they know is.
        is_revoked: whether a peer was shut out.
        config: its settings.
        rng: draws candidates and seeds.
        random: so many random bytes.
        first_token: told how long each completion's first piece took, in seconds.
    """

    def __init__(
        self,
        member: GatewayMember,
        accounts: Accounts,
        news: News,
        *,
        is_revoked: Callable[[PeerId], bool],
        config: GatewayConfig | None = None,
        rng: Random | None = None,
        random: Callable[[int], bytes] = os.urandom,
        first_token: Callable[[float], None] = lambda _: None,
    ) -> None:
        super().__init__("gateway")
        self._first_token = first_token
        self._news = news
        self._member = member
        self._config = config or GatewayConfig()
        clock, rng = member.clock, rng or SystemRandom()
        self._tasks = Tasks(on_error=_report)
        self._timers = Timers(clock, on_error=_report)
        self._catalog = AdapterCatalog()
        self._balancer = Balancer(self._config.balancer, rng)
        self._directory = Directory(
            member.peers,
            member.discovery,
            self._balancer,
            is_revoked=is_revoked,
            clock=clock,
            config=self._config.directory,
        )
        self.freshness = Freshness(news, self._tasks, clock=clock, config=self._config.freshness)
        self._admission = Admission(
            accounts,
            self.freshness,
            lambda: self._directory.gateways,
            clock=clock,
            config=self._config.admission,
        )
        auth = AuthCalls(member.peers, member.discovery, clock=clock)
        self._ledger = Ledger(member.feeds.own(USAGE), auth, self._tasks, clock=clock)
        self._usage = usage_view(member.feeds, on_error=_report)
        self._service = Gateway(
            completions=self._completions(rng, random),
            admission=self._admission,
            ledger=self._ledger,
            directory=self._directory,
            balancer=self._balancer,
            catalog=self._catalog,
            adapters=member.feeds.own(ADAPTERS),
            auth=auth,
            peers=member.peers,
            clock=clock,
        )

    def _completions(self, rng: Random, random: Callable[[int], bytes]) -> CompletionService:
        member = self._member
        dispatch = Dispatch(
            member.peers,
            self._balancer,
            self._directory.contact,
            self._tasks,
            self._timers,
            clock=member.clock,
            config=self._config.dispatch,
        )
        return CompletionService(
            member.key_pair,
            self._catalog,
            self._directory,
            self._admission,
            self._ledger,
            dispatch,
            self._tasks,
            clock=member.clock,
            rng=rng,
            random=random,
            first_token=self._first_token,
        )

    @property
    def in_progress(self) -> int:
        """Completions that were let in and are not over."""
        return self._admission.in_progress

    @property
    def trouble(self) -> str:
        """Why everybody is refused; empty where nobody is."""
        return self.freshness.trouble or self._ledger.trouble

    def readings(self) -> Iterable[Reading]:
        """What its metrics are to show of it."""
        most = self._config.admission.in_all
        yield Reading("requests_in_progress", "Completions that are not over.", self.in_progress)
        yield Reading("requests_at_once", "Completions at once, at most.", most)
        kinds = "Tokens of completions that were settled, by kind: prompt or completion."
        yield Reading("tokens", kinds, self._ledger.tokens, "kind", grows=True)
        yield Reading("leases", "Parts of quotas that it may spend.", self._ledger.leases)
        offers = self._balancer.offers(self._member.clock.monotonic())
        free = sum(offer.free_slots for offer in offers)
        yield Reading("processors", "Processors that it knows, and that offer room.", len(offers))
        yield Reading("processor_slots_free", "Slots that these said were free.", free)
        unheard = self._news.age_s()
        yield Reading("auth_unheard_seconds", "Since auth workers were heard, a majority.", unheard)

    async def open(self, stack: AsyncExitStack) -> None:
        """Read the books, close those of an earlier life, and serve."""
        member = self._member
        self._timers.start()
        stack.push_async_callback(self._timers.stop)
        stack.push_async_callback(self._tasks.stop)
        stack.push_async_callback(self._directory.close)
        stack.callback(member.feeds.subscribe(ADAPTERS, self._learn))
        async for entry in member.feeds.entries(ADAPTERS):
            self._learn([entry])
        await self._close_old_books()
        stack.callback(member.feeds.register(self._usage))
        stack.callback(member.peers.on_lost(self._directory.lost))
        member.peers.serve(self._service)
        await self._directory.refresh()
        clock, config = member.clock, self._config
        self._tasks.keep(self._directory.run, name="look for processors", clock=clock)
        sweep = partial(self._again, self._sweep, config.sweep_s)
        self._tasks.keep(sweep, name="give leases back", clock=clock)
        stack.push_async_callback(self._ledger.close)
        stack.push_async_callback(member.discovery.withdraw, Role.GATEWAY.value)
        await self._announce()
        announce = partial(self._again, self._announce, config.announce_s)
        self._tasks.keep(announce, name="announce", clock=clock)

    async def drain(self, grace_s: float) -> None:
        """Refuse new completions; let those in progress end, and other calls that are under way."""
        self._service.leaving = True
        await self._member.discovery.withdraw(Role.GATEWAY.value)
        with contextlib.suppress(TimeoutError):
            await within(self._member.clock, grace_s, self._member.peers.wait_answered())

    async def _announce(self) -> None:
        if self._service.leaving:
            return
        busy, most = self._admission.in_progress, self._config.admission.in_all
        await self._member.discovery.announce(
            Role.GATEWAY.value, Offer(load=busy / most, free_slots=max(0, most - busy))
        )

    async def _sweep(self) -> None:
        await self._ledger.close_ended()
        await self._ledger.tell()

    async def _again(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            await self._member.clock.sleep(seconds)
            try:
                await work()
            except TinkerError as error:
                _report(error)  # the next time may be better

    async def _close_old_books(self) -> None:
        # The fold is needed now, and when entries are pruned; in between it would only take memory.
        await self._usage.open()
        try:
            left = await self._ledger.recover(self._usage.state(self._member.key_pair.peer_id))
        finally:
            await self._usage.close()
        if left:
            _LOG.warning("%d requests of an earlier life cost what was reserved for them", left)

    def _learn(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.opens_epoch:
                continue
            try:
                event = decode_catalog(entry.payload)
            except (ValueError, RecursionError) as error:
                _report(error)  # another gateway's nonsense is its own
                continue
            self._catalog.apply(entry.order, event)


def _report(error: BaseException) -> None:
    # The text of an exception may quote what a client sent.
    _LOG.error("background work of the gateway failed: %s", type(error).__name__)
