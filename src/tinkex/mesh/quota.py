"""What an account and a key may spend: small leases to gateways, so that many multiply no limit.

Owns the auth workers' ledger (`QuotaLedger`), pure: events and usage entries in, decisions out. The
gateways' half is `purse`.

An account's quota and a key's cap are tokens in all. A lease takes its tokens out when it is given,
wherever the gateway then is. They come back when the gateway's own log says what became of them:

    open                      counts whole
    settled by RPC            counts what the gateway claims, or what its entries say, if more
    closed in its log, or     counts what the entries say, and nothing else; what is reserved
    an entry after its end    and not settled counts as used
    forgotten by its log      counts whole, or what the gateway claims: a log speaks of a lease for
                              days after its end, and it is accounted for long before

"An entry after its end" needs no clock but the gateway's: it reserves nothing under a lease whose
end has passed on the clock that stamps its entries, so an entry later than the end comes after all
of the lease's. A reply that was lost, or a gateway that crashed, thus costs nobody tokens for good,
and a gateway that never comes back keeps its leases counted, which is the safe side, until it is
revoked.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from tinkex.errors import BillingError, RateLimitError
from tinkex.mesh.usage import GatewayUsage, LeaseUse

RETRY_MS = 1000
_SKEW_S = 120.0
"""So far two workers' clocks may be apart."""
_SHARE = 8
"""A lease is at most this part of what is left, so that others can have the last tokens."""

_QUOTA = "account's quota", "have whoever runs the network raise it (`tinkex mesh quota`)"
_CAP = "key's cap", "make another key"
"""What limits are called, and how there may be more."""

UsageOf = Callable[[bytes], GatewayUsage]
"""Gives the fold of a gateway's usage feed, by its peer id."""


class LeaseGranted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lease_granted"):
    """A gateway may spend so much.

    Times are unix seconds: `at` by the auth worker's clock, `expires_at` by the gateway's.
    """

    lease_id: str
    gateway: bytes
    account_id: str
    key_id: str
    tokens: int
    at: float
    expires_at: float


class LeaseSettled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lease_settled"):
    """A gateway claims what it used of a lease, and that it will use no more: at a unix second."""

    lease_id: str
    used_tokens: int
    at: float


class LeaseAccounted(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lease_accounted"
):
    """Nothing more comes of a lease: this is what it cost, and it is no lease any more.

    In a dump, where `lease_id` is empty: what all such leases of a key cost. `at`: unix seconds.
    """

    lease_id: str
    account_id: str
    key_id: str
    used_tokens: int
    at: float


class GatewayLost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="gateway_lost"):
    """A gateway was revoked: of its leases counts what its entries say, and no more is awaited."""

    gateway: bytes
    at: float


LeaseEvent = LeaseGranted | LeaseSettled | LeaseAccounted | GatewayLost


@dataclass(slots=True, eq=False)
class _Open:
    """A lease that is not accounted for yet."""

    granted: LeaseGranted
    claimed: int | None = None


@dataclass(slots=True, eq=False)
class _Account:
    """What was spent, and the leases that are open."""

    used_by_key: dict[str, int] = field(default_factory=dict)
    """Of leases that were accounted for."""
    leases: dict[str, _Open] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spending:
    """What an account or a key spent."""

    used: int
    """Tokens of settled requests."""
    reserved: int
    """Tokens that may yet be spent: open leases, and reservations."""

    @property
    def tokens(self) -> int:
        """Both: what counts against a limit."""
        return self.used + self.reserved


class QuotaLedger:
    """Folds leases and usage, and decides on new leases.

    Args:
        usage: the folds of usage feeds, which somebody else keeps.
    """

    def __init__(self, usage: UsageOf) -> None:
        self._usage = usage
        self._accounts: dict[str, _Account] = {}
        self._account_of: dict[str, str] = {}
        self._lost: dict[bytes, GatewayLost] = {}

    def apply(self, event: LeaseEvent) -> None:
        """Fold one event of the auth log."""
        match event:
            case LeaseGranted():
                account = self._accounts.setdefault(event.account_id, _Account())
                account.leases[event.lease_id] = _Open(event)
                self._account_of[event.lease_id] = event.account_id
            case LeaseSettled():
                lease = self.open_lease(event.lease_id)
                if lease is not None:
                    lease.claimed = event.used_tokens
            case LeaseAccounted():
                account = self._accounts.setdefault(event.account_id, _Account())
                account.leases.pop(event.lease_id, None)
                self._account_of.pop(event.lease_id, None)
                known = account.used_by_key.get(event.key_id, 0)
                account.used_by_key[event.key_id] = known + event.used_tokens
            case GatewayLost():
                self._lost.setdefault(event.gateway, event)

    def dump(self) -> Iterator[LeaseEvent]:
        """Give fewest events that come to this state."""
        yield from self._lost.values()
        for account_id, account in self._accounts.items():
            for key_id, used in account.used_by_key.items():
                yield LeaseAccounted("", account_id, key_id, used, 0.0)
            for lease in account.leases.values():
                yield lease.granted
                if lease.claimed is not None:
                    yield LeaseSettled(lease.granted.lease_id, lease.claimed, 0.0)

    @property
    def leases(self) -> int:
        """How many are not accounted for yet."""
        return len(self._account_of)

    def open_lease(self, lease_id: str) -> _Open | None:
        """Return a lease that is not accounted for yet."""
        account = self._accounts.get(self._account_of.get(lease_id, ""))
        return None if account is None else account.leases.get(lease_id)

    def gateway_of(self, lease_id: str) -> bytes | None:
        """Say whom a lease that is still open was given to."""
        lease = self.open_lease(lease_id)
        return None if lease is None else lease.granted.gateway

    def spending(self, account_id: str, key_id: str | None = None) -> Spending:
        """Return what an account spent, or one key of it."""
        account = self._accounts.get(account_id)
        if account is None:
            return Spending(0, 0)
        by_key = account.used_by_key
        used = sum(by_key.values()) if key_id is None else by_key.get(key_id, 0)
        reserved = 0
        for lease in _of_key(account, key_id):
            settled = self._use(lease).settled_tokens
            used += settled
            reserved += self._counted(lease) - settled
        return Spending(used, reserved)

    def accountable(self, account_id: str, now: float) -> tuple[LeaseAccounted, ...]:
        """Say which of an account's leases can be accounted for, to be appended.

        The gateways' entries are not needed for these any more, once the events are in the log.
        """
        account = self._accounts.get(account_id, _Account())
        found = []
        for lease_id, lease in account.leases.items():
            use = self._use(lease)
            if self._ended(lease) and not use.reserved:
                key_id = lease.granted.key_id
                used = self._counted(lease)
                found.append(LeaseAccounted(lease_id, account_id, key_id, used, now))
        return tuple(found)

    def all_accountable(self, now: float, *, most: int) -> tuple[LeaseAccounted, ...]:
        """As `accountable`, of every account, at most so many leases at a time."""
        every = (self.accountable(account_id, now) for account_id in self._accounts)
        return tuple(itertools.islice(itertools.chain.from_iterable(every), most))

    def decide(
        self, wanted: LeaseGranted, *, least: int, quota: int | None, cap: int | None
    ) -> LeaseGranted:
        """Decide how much of a lease is given.

        Args:
            wanted: the lease, with as many tokens as would be convenient.
            least: as few as are of any use.
            quota: the account's, in tokens; None: no limit.
            cap: the key's.

        Returns:
            The event to append, of `least` tokens or more.

        Raises:
            BillingError: the quota or the cap is used up.
            RateLimitError: it is not, but other gateways hold what is left.
        """
        room = self._room(wanted.account_id, None, quota, least)
        if wanted.key_id:
            of_key = self._room(wanted.account_id, wanted.key_id, cap, least)
            room = of_key if room is None else room if of_key is None else min(room, of_key)
        tokens = wanted.tokens if room is None else min(wanted.tokens, room // _SHARE)
        return msgspec.structs.replace(wanted, tokens=max(least, tokens))

    def _room(
        self, account_id: str, key_id: str | None, limit: int | None, least: int
    ) -> int | None:
        if limit is None:
            return None
        spent = self.spending(account_id, key_id)
        name, more = _QUOTA if key_id is None else _CAP
        if spent.used + least > limit:
            raise BillingError(
                f"the {name} of {limit} tokens is used up: {spent.used} are spent, and this "
                f"request may need {least}; ask for fewer, or {more}"
            )
        if spent.tokens + least > limit:
            raise RateLimitError(
                f"what is left of the {name} is reserved by requests in progress; try again",
                retry_after_ms=RETRY_MS,
            )
        return limit - spent.tokens

    def _use(self, lease: _Open) -> LeaseUse:
        return self._usage(lease.granted.gateway).lease(lease.granted.lease_id)

    def _ended(self, lease: _Open) -> bool:
        gateway = lease.granted.gateway
        return (
            self._use(lease).closed
            or self._usage(gateway).seen_until > lease.granted.expires_at
            or gateway in self._lost
        )

    def _forgotten(self, lease: _Open) -> bool:
        """Whether the gateway's feed may have named a lease, too long ago to tell of it still."""
        usage, granted = self._usage(lease.granted.gateway), lease.granted
        return not usage.knows(granted.lease_id) and granted.at <= usage.forgot_until + _SKEW_S

    def _counted(self, lease: _Open) -> int:
        said = self._use(lease).tokens
        if self._ended(lease) and not self._forgotten(lease):
            return said
        return max(said, lease.granted.tokens if lease.claimed is None else lease.claimed)


def _of_key(account: _Account, key_id: str | None) -> Iterator[_Open]:
    for lease in account.leases.values():
        if key_id is None or lease.granted.key_id == key_id:
            yield lease
