"""Leases to gateways, and what accounts used.

Owns the auth worker's side of both; `quota` has the rules.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from tinkex._clock import Clock
from tinkex.errors import AuthenticationError, InputError, NotFoundError
from tinkex.mesh.accounts.accounts import Decision
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.credentials import new_id
from tinkex.mesh.accounts.events import QuotaSet
from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.accounts.scopes import READ
from tinkex.mesh.api.auth import Lease, LeaseRequest, UsageEntry, UsageMonth, UsageReport
from tinkex.mesh.identity import PeerId
from tinkex.mesh.quota import LeaseAccounted, LeaseGranted, LeaseSettled, UsageOf
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S
from tinkex.mesh.usage import COUNTERSIGNED, GatewayUsage, MonthUse, SettledRequest
from tinkex.mesh.workers.authority.books import AuthBook
from tinkex.mesh.workers.authority.log import AuthLog

MAX_LEASE_TOKENS = 1 << 40
ACCOUNTED_AT_ONCE = 256
"""Leases in one entry of the log."""
MAX_ENTRIES = 1000
"""Of a report: the latest."""


class Spending:
    """Lends tokens, and says what became of them.

    Args:
        log: carries decisions out.
        book: accounts and leases as they are now.
        verify: says who a credential speaks for.
        usage: the fold of a gateway's usage feed.
        gateways: those that have one.
        config: how much, and how long.
        clock: tells the time.
        random: so many random bytes.
    """

    def __init__(
        self,
        log: AuthLog,
        *,
        book: Callable[[], AuthBook],
        verify: Callable[[str, float], Caller],
        usage: UsageOf,
        gateways: Callable[[], Iterable[PeerId]],
        config: AuthConfig,
        clock: Clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._log = log
        self._book = book
        self._verify = verify
        self._usage = usage
        self._gateways = gateways
        self._config = config
        self._clock = clock
        self._random = random

    async def lease(self, request: LeaseRequest, gateway: PeerId) -> Lease:
        """Let a gateway spend some of an account's tokens.

        Raises:
            InputError: that is no number of tokens.
            AuthenticationError: the account is closed, or the key does not hold any more.
            BillingError: the quota or the key's cap is used up.
            RateLimitError: it is not, but others hold what is left.
        """
        if not 0 < request.tokens <= MAX_LEASE_TOKENS:
            raise InputError("tokens: a lease is of one token or more")

        done: list[tuple[bytes, str]] = []

        async def decide(now: float) -> Decision[LeaseGranted]:
            book = self._book()
            account = book.state.open_account(request.account_id)
            if account is None:
                raise AuthenticationError("this account was closed")
            wanted = LeaseGranted(
                lease_id=new_id("lea", self._random),
                gateway=gateway.raw,
                account_id=request.account_id,
                key_id=request.key_id,
                tokens=max(request.tokens, self._config.lease_tokens),
                at=now,
                expires_at=now + _ahead_s(request.now, now) + self._config.lease_s,
            )
            granted = book.ledger.decide(
                wanted,
                least=request.tokens,
                quota=account.quota_tokens,
                cap=self._cap(request, now),
            )
            accounted = book.ledger.accountable(request.account_id, now)
            done.extend(_held(book, accounted))
            return Decision((*accounted, granted), granted)

        lease = await self._log.carry(decide)
        self._forget(done)
        return Lease(lease_id=lease.lease_id, tokens=lease.tokens, expires_at=lease.expires_at)

    async def account_for_ended(self) -> None:
        """Account for the leases that have ended, of accounts too that ask for no other.

        Gateways speak of a lease for some days after they closed it, and no longer.

        Raises:
            NoQuorumError: another auth worker leads, and does this.
        """
        done: list[tuple[bytes, str]] = []

        async def decide(now: float) -> Decision[None]:
            book = self._book()
            accounted = book.ledger.all_accountable(now, most=ACCOUNTED_AT_ONCE)
            done.extend(_held(book, accounted))
            return Decision(accounted, None)

        now = self._clock.now()
        while self._book().ledger.all_accountable(now, most=1):
            await self._log.carry(decide)
            self._forget(done)
            done.clear()

    def _forget(self, accounted: Iterable[tuple[bytes, str]]) -> None:
        for holder, lease_id in accounted:
            self._usage(holder).forget(lease_id)

    def _cap(self, request: LeaseRequest, now: float) -> int | None:
        if not request.key_id:
            return None
        key = self._book().state.key(request.key_id)
        if key is None or key.created.account_id != request.account_id:
            raise AuthenticationError("the API key is not known here")
        if key.revoked_at is not None:
            raise AuthenticationError("this API key was revoked: make a new one")
        if key.created.expires_at is not None and now >= key.created.expires_at:
            raise AuthenticationError("this API key has expired: make a new one")
        return key.created.token_cap

    async def settle(self, lease_id: str, used_tokens: int, gateway: PeerId) -> None:
        """Take back what a gateway did not use of a lease; harmless once its log said the same.

        Raises:
            InputError: that is no number of tokens.
            NotFoundError: the lease is another gateway's.
        """
        if not 0 <= used_tokens <= MAX_LEASE_TOKENS:
            raise InputError("used_tokens: it cannot be negative")

        async def decide(now: float) -> Decision[None]:
            holder = self._book().ledger.gateway_of(lease_id)
            if holder is None:
                return Decision((), None)
            if holder != gateway.raw:
                raise NotFoundError("this gateway has no such lease")
            return Decision((LeaseSettled(lease_id, used_tokens, now),), None)

        await self._log.carry(decide)

    async def set_quota(self, account_id: str, quota_tokens: int | None) -> None:
        """Say what an account may use in all.

        Raises:
            InputError: the number is negative.
            NotFoundError: there is no such account.
        """
        if quota_tokens is not None and quota_tokens < 0:
            raise InputError("quota_tokens: give 0 or more, or None for no limit")

        async def decide(now: float) -> Decision[None]:
            if self._book().state.open_account(account_id) is None:
                raise NotFoundError(f"there is no account {account_id}")
            event = QuotaSet(at=now, account_id=account_id, quota_tokens=quota_tokens)
            return Decision((event,), None)

        await self._log.carry(decide)

    def report(self, credential: str, since: float, before: float | None = None) -> UsageReport:
        """Say what an account used, to who speaks for it.

        Args:
            credential: a token or a key.
            since: only requests that were settled then or later, in unix seconds.
            before: only those that were settled then or earlier.

        Raises:
            AuthenticationError: the credential does not hold.
            PermissionDeniedError: it is not for reading.
        """
        caller = self._verify(credential, self._clock.now())
        caller.need(READ)
        book = self._book()
        account = book.state.open_account(caller.account_id)
        if account is None:
            raise AuthenticationError("this account was closed")
        spent = book.ledger.spending(caller.account_id)
        folds = [(gateway, self._of(gateway)) for gateway in self._gateways()]
        entries = [
            _entry(gateway, found)
            for gateway, usage in folds
            for found in usage.of_account(caller.account_id, since=since)
            if before is None or found.settled.at <= before
        ]
        entries.sort(key=lambda entry: entry.at)
        listed_since = max([since, *(usage.earlier_until for _, usage in folds)])
        if len(entries) > MAX_ENTRIES:
            entries = entries[-MAX_ENTRIES:]
            listed_since = entries[0].at
        return UsageReport(
            account_id=caller.account_id,
            quota_tokens=account.quota_tokens,
            used_tokens=spent.used,
            reserved_tokens=spent.reserved,
            entries=tuple(entries),
            listed_since=listed_since,
            earlier=_earlier(caller.account_id, [usage for _, usage in folds]),
        )

    def _of(self, gateway: PeerId) -> GatewayUsage:
        return self._usage(gateway.raw)


def _held(book: AuthBook, accounted: Iterable[LeaseAccounted]) -> list[tuple[bytes, str]]:
    return [(book.ledger.gateway_of(one.lease_id) or b"", one.lease_id) for one in accounted]


def _earlier(account_id: str, folds: Iterable[GatewayUsage]) -> tuple[UsageMonth, ...]:
    months: dict[str, MonthUse] = {}
    for month, use in (found for usage in folds for found in usage.earlier(account_id)):
        known = months.setdefault(month, MonthUse())
        known.requests += use.requests
        known.prompt_tokens += use.prompt_tokens
        known.completion_tokens += use.completion_tokens
    return tuple(
        UsageMonth(month, use.requests, use.prompt_tokens, use.completion_tokens)
        for month, use in sorted(months.items())
    )


def _entry(gateway: PeerId, found: SettledRequest) -> UsageEntry:
    settled = found.settled
    return UsageEntry(
        request_id=settled.request_id,
        gateway=gateway.raw,
        epoch=found.epoch,
        sequence=found.sequence,
        at=settled.at,
        key_id=settled.key_id,
        model=settled.model,
        prompt_tokens=settled.prompt_tokens,
        completion_tokens=settled.completion_tokens,
        state=COUNTERSIGNED if found.countersigned else settled.state,
    )


def _ahead_s(theirs: float, ours: float) -> float:
    """Say how far a gateway's clock is ahead: what it notes of a lease bears its own times.

    A clock that is further off than any that is tolerated counts as right, and NaN too.
    """
    ahead = theirs - ours
    return ahead if -CLOCK_SKEW_S <= ahead <= CLOCK_SKEW_S else 0.0
