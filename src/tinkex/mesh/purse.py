"""A gateway's leases: what it may spend for whom, request by request.

Owns the gateway's half of `quota`. Pure: every change is returned as a usage entry, which the
gateway appends to its "usage" feed before it acts on it. Whoever holds a purse asks for leases.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from tinkex.mesh.usage import (
    FROM_RESERVATION,
    SETTLED,
    GatewayUsage,
    LeaseClosed,
    Reserved,
    Settled,
    StillHere,
    UsageEvent,
)


@dataclass(slots=True, eq=False)
class _Held:
    """One lease."""

    lease_id: str
    account_id: str
    key_id: str
    left: int
    expires_at: float
    reserved: dict[str, Reserved] = field(default_factory=dict)

    @property
    def who(self) -> tuple[str, str]:
        """Whom it is for: account and key."""
        return self.account_id, self.key_id


class Purse:
    """The leases of one gateway.

    Times are unix seconds; one that is earlier than what was seen before is taken for that, so that
    a clock that is set back reserves nothing under a lease that has ended.
    """

    def __init__(self) -> None:
        self._leases: dict[tuple[str, str], dict[str, _Held]] = {}
        """By account and key, by id."""
        self._lease_of: dict[str, _Held] = {}
        self._latest = 0.0

    @property
    def leases(self) -> int:
        """How many there are."""
        return sum(map(len, self._leases.values()))

    def put_in(
        self, lease_id: str, account_id: str, key_id: str, tokens: int, expires_at: float
    ) -> None:
        """Take a lease that an auth worker gave."""
        held = _Held(lease_id, account_id, key_id, tokens, expires_at)
        self._leases.setdefault(held.who, {})[lease_id] = held

    def reserve(
        self, request_id: str, account_id: str, key_id: str, model: str, tokens: int, now: float
    ) -> Reserved | None:
        """Set tokens aside for a request: the entry to append, or None if no lease has them."""
        now = self.time(now)
        for lease in self._leases.get((account_id, key_id), {}).values():
            if lease.left >= tokens and now < lease.expires_at:
                lease.left -= tokens
                entry = Reserved(
                    lease_id=lease.lease_id,
                    at=now,
                    request_id=request_id,
                    account_id=account_id,
                    key_id=key_id,
                    model=model,
                    tokens=tokens,
                )
                lease.reserved[request_id] = entry
                self._lease_of[request_id] = lease
                return entry
        return None

    def settle(
        self,
        request_id: str,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        now: float,
        receipt: bytes = b"",
    ) -> Settled:
        """Say what a request cost; what it did not need may be spent again.

        Raises:
            KeyError: nothing is reserved for it.
        """
        lease = self._lease_of.pop(request_id)
        reserved = lease.reserved.pop(request_id)
        lease.left += max(0, reserved.tokens - prompt_tokens - completion_tokens)
        return _settled(
            reserved, self.time(now), prompt_tokens, completion_tokens, SETTLED, receipt
        )

    def close_ended(self, now: float, *, unless: Container[str] = ()) -> list[LeaseClosed]:
        """Close the leases whose time is over and of which every request is settled.

        Args:
            now: unix seconds.
            unless: leases that stay, by id: one of their settlements is not written yet.
        """
        now = self.time(now)
        return self._close((one for one in self._all() if now >= one.expires_at), now, unless)

    def give_back(
        self, account_id: str, key_id: str, now: float, *, unless: Container[str] = ()
    ) -> list[LeaseClosed]:
        """Close a caller's leases that no request needs, so that a larger one can be asked for."""
        mine = self._leases.get((account_id, key_id), {})
        return self._close(mine.values(), self.time(now), unless)

    def close_all(self, now: float, *, unless: Container[str] = ()) -> list[LeaseClosed]:
        """Close every lease that no request needs: the gateway stops."""
        return self._close(self._all(), self.time(now), unless)

    def still_here(self, now: float) -> StillHere:
        """Say that nothing else happened."""
        return StillHere(at=self.time(now))

    def _close(
        self, leases: Iterable[_Held], now: float, unless: Container[str]
    ) -> list[LeaseClosed]:
        done = [one for one in leases if not one.reserved and one.lease_id not in unless]
        for one in done:
            del self._leases[one.who][one.lease_id]
            if not self._leases[one.who]:
                del self._leases[one.who]
        return [LeaseClosed(lease_id=one.lease_id, at=now) for one in done]

    def _all(self) -> Iterator[_Held]:
        return itertools.chain.from_iterable(
            of_caller.values() for of_caller in self._leases.values()
        )

    def time(self, now: float) -> float:
        """Return the time that counts: `now`, or what was seen before, if that is later."""
        self._latest = max(self._latest, now)
        return self._latest


def closing_entries(own: GatewayUsage, now: float) -> list[UsageEvent]:
    """Return what a crash left to be written: what was in progress costs its reservation.

    Args:
        own: the fold of one's own feed.
        now: unix seconds.
    """
    now = max(now, own.seen_until)
    left = list(own.open_leases())
    settled: list[UsageEvent] = [
        _settled(reserved, now, reserved.tokens, 0, FROM_RESERVATION, b"")
        for _, lease in left
        for reserved in lease.reserved.values()
    ]
    return [*settled, *(LeaseClosed(lease_id=lease_id, at=now) for lease_id, _ in left)]


def _settled(
    reserved: Reserved, at: float, prompt: int, completion: int, state: str, receipt: bytes
) -> Settled:
    return Settled(
        lease_id=reserved.lease_id,
        at=at,
        request_id=reserved.request_id,
        account_id=reserved.account_id,
        key_id=reserved.key_id,
        model=reserved.model,
        prompt_tokens=prompt,
        completion_tokens=completion,
        state=state,
        receipt=receipt,
    )
