"""The auth worker: accounts, keys, quota and usage, on logs that outlive it.

Owns putting the parts together, and what is made good at a start that a crash left undone. Each
part is in `workers.authority`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Protocol

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tinkex.errors import NotFoundError, TinkerError
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import NetworkEvent, PublicEvent, network_form, public_form
from tinkex.mesh.accounts.lockout import LockOut
from tinkex.mesh.deadline import within
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.feeds.policy import ACCOUNTS_PRIVATE, ACCOUNTS_PUBLIC, NETWORK
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.vault import PersonKey, Vault
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.trust.network import NetworkInfo
from tinkex.mesh.workers.authority.api import AuthService
from tinkex.mesh.workers.authority.books import AuthBook, UsageBook, usage_view
from tinkex.mesh.workers.authority.hashing import Hashing
from tinkex.mesh.workers.authority.log import AuthLog, Leadership, SoleMember
from tinkex.mesh.workers.authority.network import Membership, Place
from tinkex.mesh.workers.authority.operator import Operator
from tinkex.mesh.workers.authority.orders import RootOrders
from tinkex.mesh.workers.authority.people import People
from tinkex.mesh.workers.authority.signing import Signing
from tinkex.mesh.workers.authority.spending import Spending
from tinkex.mesh.workers.base import Linked, Worker
from tinkex.mesh.workers.public_accounts import NetworkView, PublicView
from tinkex.mesh.workers.reading import Reading
from tinkex.mesh.workers.root_word import RootWord
from tinkex.passwords import Passwords

_LOG = logging.getLogger("tinkex.mesh.auth")
ACCOUNT_S = 300.0
"""Seconds between two looks for leases that ended and were not accounted for."""
KEY_WAIT_S = 60.0
"""For so long nobody registers while the key of a person's address is missing: it comes with its
entries, from whoever has those. One that does not come is lost, and its person registers anew."""


class AuthMember(Linked, Protocol):
    """What an auth worker needs of the worker that it is."""

    @property
    def membership(self) -> Place:
        """Its place in the network."""

    @property
    def feeds(self) -> FeedStore:
        """Its feeds, open."""

    @property
    def vault(self) -> Vault:
        """Persons' keys, open."""

    @property
    def known(self) -> NetworkView:
        """What is known of the network, open."""

    def root_word(self) -> RootWord | None:
        """What the holder of the root key said last; None: nothing."""

    def adopt(self, certificate: bytes) -> None:
        """Show another certificate of its own from now on.

        Raises:
            TrustError: it does not hold.
        """


class AuthWorker(Worker):
    """Serves accounts.

    Args:
        member: the worker that it is.
        config: its settings.
        leadership: whether it may write; None: where it is the only auth worker.
        random: so many random bytes.
    """

    def __init__(
        self,
        member: AuthMember,
        config: AuthConfig | None = None,
        *,
        leadership: Leadership | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        super().__init__("auth")
        config = config or AuthConfig()
        place, feeds, clock = member.membership, member.feeds, member.clock
        self._member = member
        self._tasks = Tasks(on_error=_report)
        self._vault = member.vault
        self._unreadable: dict[str, float] = {}
        """Accounts whose key is not here, and since when, in monotonic seconds."""
        self._lockout = LockOut(config, _derived(member.key_pair))
        self._public = PublicView(feeds, place.network.id, on_error=_report)
        self._known = member.known
        self._usage = usage_view(feeds, on_error=_report)
        leadership = leadership or SoleMember(
            member.key_pair.peer_id, lambda: self._network()[0], feeds.own(ACCOUNTS_PRIVATE)
        )
        self._private: View[AuthBook] = View(
            feeds,
            ACCOUNTS_PRIVATE,
            self._book,
            name="accounts",
            by_author=False,
            only=leadership,
            on_error=_report,
        )
        self._leadership = leadership
        leadership.on_change(self._private.refold)
        leadership.on_leading(self._begin_to_lead)
        self._log = AuthLog(
            leadership,
            feeds.own(ACCOUNTS_PUBLIC),
            feeds.own(NETWORK),
            current=self._current,
            untold=self._untold,
            tasks=self._tasks,
            clock=clock,
        )
        self._signing = Signing(
            member.key_pair,
            place.network.id,
            state=lambda: self.book.state,
            config=config,
            random=random,
        )
        self.people = self._for_people(config, random)
        self.spending = self._of_tokens(config, random)
        self.operator = Operator(lambda: self.book, self.spending)
        self.network = self._of_peers()
        self.orders = RootOrders(
            member.key_pair.peer_id,
            member.root_word,
            lambda: member.membership,
            member.adopt,
            network=lambda: self._network()[0],
            membership=self.network,
            clock=clock,
        )

    def _for_people(self, config: AuthConfig, random: Callable[[int], bytes]) -> People:
        return People(
            self._log,
            state=lambda: self.book.state,
            verify=self._public.verify,
            vault=self._vault,
            awaits_keys=self._awaits_keys,
            hashing=Hashing(Passwords(memory_kib=config.password_memory_kib), config),
            lockout=self._lockout,
            signing=self._signing,
            config=config,
            clock=self._member.clock,
            random=random,
        )

    def _of_tokens(self, config: AuthConfig, random: Callable[[int], bytes]) -> Spending:
        return Spending(
            self._log,
            book=lambda: self.book,
            verify=self._public.verify,
            usage=self._usage_of,
            gateways=self._usage.authors,
            config=config,
            clock=self._member.clock,
            random=random,
        )

    def _of_peers(self) -> Membership:
        return Membership(
            self._log,
            self._member.feeds.own(NETWORK),
            self._member.key_pair,
            lambda: self._member.membership,
            network=self._network,
            state=lambda: self.book.state,
            clock=self._member.clock,
        )

    @property
    def book(self) -> AuthBook:
        """Accounts and leases as they are now; another object after the feed was folded again."""
        return self._private.state()

    def readings(self) -> Iterable[Reading]:
        """What its metrics are to show of it."""
        book = self.book
        leads = float(self._leadership.is_leader)
        yield Reading("leads", "1 where it may write, of several auth workers.", leads)
        yield Reading("accounts", "Accounts, closed ones too.", len(book.state.accounts))
        yield Reading("leases", "Parts of quotas that gateways may spend.", book.ledger.leases)
        yield Reading("gateways", "Gateways whose usage it has.", len(self._usage.authors()))
        skipped = self._usage.skipped + self._private.skipped
        told = "Entries of usage and accounts that made no sense."
        yield Reading("entries_skipped", told, skipped, grows=True)

    async def open(self, stack: AsyncExitStack) -> None:
        """Fold the logs, make good what a crash left undone, serve, and announce it."""
        stack.push_async_callback(self._tasks.finished)
        stack.callback(self._vault.on_keys(self._keyed))
        for view in (self._usage, self._public, self._private):
            await view.open()
            stack.push_async_callback(view.close)
        await self._try_to_make_good()
        self._member.peers.serve(AuthService(self.people, self.network, self.spending))
        await self._member.discovery.announce(Role.AUTH.value, Offer())
        stack.push_async_callback(self._member.discovery.withdraw, Role.AUTH.value)
        watching = Tasks(on_error=_report)
        keep = partial(watching.keep, clock=self._member.clock)
        keep(self.orders.run, name="heed the root")
        keep(self._tidy_for_ever, name="account for leases that ended, erase who left")
        stack.push_async_callback(watching.stop)

    async def drain(self, grace_s: float) -> None:
        """Be found no more, and answer the calls that are under way."""
        await self._member.discovery.withdraw(Role.AUTH.value)
        with contextlib.suppress(TimeoutError):
            await within(self._member.clock, grace_s, self._member.peers.wait_answered())

    async def _tidy_for_ever(self) -> None:
        while True:
            await self._member.clock.sleep(ACCOUNT_S)
            with contextlib.suppress(TinkerError):  # another leads, or the next time may be better
                await self.spending.account_for_ended()
            with contextlib.suppress(TinkerError):
                if self._leadership.is_leader:
                    await self._erase_closed()

    def _begin_to_lead(self) -> None:
        self._tasks.spawn(self._try_to_make_good(), name="make good what another leader left")

    async def _try_to_make_good(self) -> None:
        try:
            await self._make_good()
        except TinkerError as error:
            # Reads go on without a majority; what is to be written is, once this worker leads.
            _report(error)

    async def _make_good(self) -> None:
        """Write what an earlier life decided and did not get done; announce what is new."""
        announced, _ = self._signing.key(self._member.clock.now())
        await self._log.note(*announced)
        await self.network.describe(self._member.membership.network_encoded)
        await self._erase_closed()

    async def _erase_closed(self) -> None:
        """Erase who closed an account where the disk refused that, or the caller had gone."""
        for account in tuple(self.book.state.accounts.values()):
            if account.closed and not self._vault.erased(account.account_id):
                await self._vault.erase(account.account_id)

    def _untold(self) -> tuple[list[PublicEvent], list[NetworkEvent]]:
        held = tuple(self.book.state.dump())
        return (
            [event for event in public_form(held) if not self._public.book.knows(event)],
            [event for event in network_form(held) if not self._known.book.knows(event)],
        )

    def _book(self, data: bytes | None) -> AuthBook:
        return AuthBook(data, unseal=self._unseal, usage=self._usage_of, lockout=self._lockout)

    def _unseal(self, account_id: str, sealed: bytes, field: str) -> bytes | None:
        try:
            return self._vault.unseal(account_id, sealed, field=field)
        except NotFoundError:
            if not self._vault.erased(account_id):
                self._unreadable.setdefault(account_id, self._member.clock.monotonic())
            return None

    def _keyed(self, keys: Sequence[PersonKey]) -> None:
        """Fold again what could not be read while its key was on its way."""
        came = [key.person for key in keys if key.person in self._unreadable]
        for person in came:
            self._unreadable.pop(person, None)
        if came:
            self._private.refold()

    def _awaits_keys(self) -> bool:
        """Whether there are accounts of which nobody can say yet whose they are."""
        since = self._member.clock.monotonic() - KEY_WAIT_S
        return any(
            noticed > since and not self._vault.erased(account_id)
            for account_id, noticed in self._unreadable.items()
        )

    def _usage_of(self, gateway: bytes) -> UsageBook:
        return self._usage.state(PeerId(gateway))

    def _network(self) -> tuple[NetworkInfo, bytes]:
        book = self._known.book
        return book.info, book.encoded

    async def _current(self) -> None:
        await self._public.current()  # first: by then every view was told of what is stored
        await self._private.current()
        await self._known.current()


def _derived(key_pair: KeyPair) -> bytes:
    """A secret of this worker alone, that is on no disk but in its key."""
    return HKDF(SHA256(), length=32, salt=None, info=b"tinkex-mesh lock-out").derive(key_pair.seed)


def _report(error: BaseException) -> None:
    _LOG.error("%s: %s", type(error).__name__, error)
