"""What a gateway writes of the tokens that it spent: the entries of its "usage" feed.

Owns their form and how they are folded into what each lease used. A gateway appends

    Reserved        before a request goes to a processor: the most that it may cost
    Settled         when it ended: what it cost
    Countersigned   when the client signed the receipt
    LeaseClosed     when nothing more will be reserved under a lease
    StillHere       when it wrote nothing for a while, and may hold a lease that it does not know of

and each before it acts on it. After a crash it settles what it finds reserved and not settled, from
the reservation. The sum of these entries is the truth about an account; `quota` limits by it.
Times are unix seconds of the gateway's clock, and never go back within a feed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

SETTLED = "settled"
COUNTERSIGNED = "countersigned"
FROM_RESERVATION = "from_reservation"


class UsageRecord(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"
):
    """Base of what stands in a usage feed."""

    lease_id: str
    """The lease that the tokens are of."""
    at: float


class Reserved(UsageRecord, frozen=True, tag="reserved"):
    """A request is about to begin, and may cost so much."""

    request_id: str
    account_id: str
    key_id: str
    """Empty where the caller showed an access token."""
    model: str
    tokens: int
    """Prompt and the most that may be sampled."""


class Settled(UsageRecord, frozen=True, tag="settled"):
    """A request has ended."""

    request_id: str
    account_id: str
    key_id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    state: str = SETTLED
    """`settled`, or `from_reservation` where a crash left nothing but that."""
    receipt: bytes = b""
    """The gateway's signed receipt, as the client has it."""


class Countersigned(UsageRecord, frozen=True, tag="countersigned"):
    """The client agreed with a receipt."""

    request_id: str
    signature: bytes


class LeaseClosed(UsageRecord, frozen=True, tag="closed"):
    """Nothing more will be reserved under a lease; all of it is settled."""


class StillHere(UsageRecord, frozen=True, tag="still_here"):
    """Nothing happened until now, under no lease: whatever ended before has ended."""

    lease_id: str = ""


UsageEvent = Reserved | Settled | Countersigned | LeaseClosed | StillHere


def encode_usage(event: UsageEvent) -> bytes:
    """Return an entry's payload."""
    return msgspec.msgpack.encode(event)


def decode_usage(payload: bytes) -> UsageEvent:
    """Read an entry's payload.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    event: UsageEvent = msgspec.msgpack.decode(payload, type=UsageEvent)
    return event


class SettledRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request that was settled, and where its gateway wrote so."""

    epoch: bytes
    sequence: int
    settled: Settled
    countersigned: bool = False


class LeaseUse(msgspec.Struct, array_like=True):
    """What one gateway's feed says of one lease."""

    reserved: dict[str, int] = {}
    """Tokens of requests that are not settled yet, by request id."""
    settled: dict[str, int] = {}
    """Tokens of those that are."""
    closed: bool = False

    @property
    def settled_tokens(self) -> int:
        """What it cost for certain."""
        return sum(self.settled.values())

    @property
    def tokens(self) -> int:
        """What it cost, with what is reserved and may yet be spent."""
        return self.settled_tokens + sum(self.reserved.values())


class _Dump(msgspec.Struct, array_like=True):
    seen_until: float
    leases: dict[str, LeaseUse]
    requests: list[SettledRequest]


class GatewayUsage:
    """The fold of one gateway's usage feed, in its order.

    Args:
        data: what `dump` gave; None: nothing yet.
        remembered: so many of its latest requests can be listed; all are counted.
    """

    def __init__(self, data: bytes | None = None, *, remembered: int = 20_000) -> None:
        self.seen_until = 0.0
        """The time of the latest entry; all earlier ones are here, too."""
        self._remembered = remembered
        self._leases: dict[str, LeaseUse] = {}
        self._requests: OrderedDict[str, SettledRequest] = OrderedDict()
        if data is not None:
            dump = msgspec.msgpack.decode(data, type=_Dump)
            self.seen_until, self._leases = dump.seen_until, dump.leases
            self._requests.update((one.settled.request_id, one) for one in dump.requests)

    def dump(self) -> bytes:
        """Return the state as bytes, equal for equal entries."""
        requests = list(self._requests.values())
        return msgspec.msgpack.encode(
            _Dump(self.seen_until, self._leases, requests), order="sorted"
        )

    def apply(self, event: UsageEvent, *, epoch: bytes, sequence: int) -> None:
        """Fold one entry. A request that is settled twice counts once: what came first holds."""
        self.seen_until = max(event.at, self.seen_until)
        if isinstance(event, StillHere):
            return
        if isinstance(event, Countersigned):
            known = self._requests.get(event.request_id)
            if known is not None:
                agreed = msgspec.structs.replace(known, countersigned=True)
                self._requests[event.request_id] = agreed
            return
        lease = self._leases.setdefault(event.lease_id, LeaseUse())
        if isinstance(event, LeaseClosed):
            lease.closed = True
        elif event.request_id in lease.settled:
            return
        elif isinstance(event, Reserved):
            lease.reserved[event.request_id] = max(0, event.tokens)
        else:
            lease.reserved.pop(event.request_id, None)
            tokens = max(0, event.prompt_tokens) + max(0, event.completion_tokens)
            lease.settled[event.request_id] = tokens
            self._requests[event.request_id] = SettledRequest(epoch, sequence, event)
            if len(self._requests) > self._remembered:
                self._requests.popitem(last=False)

    def lease(self, lease_id: str) -> LeaseUse:
        """Return what is written of a lease; of one that is not named, nothing used."""
        return self._leases.get(lease_id) or LeaseUse()

    def of_account(self, account_id: str, *, since: float = 0.0) -> Iterator[SettledRequest]:
        """Go through what the gateway says that an account used from a time on, in order."""
        for found in self._requests.values():
            if found.settled.account_id == account_id and found.settled.at >= since:
                yield found

    def forget(self, lease_id: str) -> None:
        """Drop what is known of a lease that was accounted for."""
        self._leases.pop(lease_id, None)
