"""What the logs come to: the states of the views that auth workers, and others, keep of them.

Owns how entries reach the folds of `accounts`, `quota` and `usage`, and how those are saved. A dump
is a list of events again, in few, with personal fields sealed as in the log.
"""

from __future__ import annotations

from collections.abc import Callable

from tinkex.mesh.accounts.events import (
    AuthEvent,
    LockedOut,
    LockLifted,
    decode_events,
    decode_network_events,
    decode_public_events,
    encode_events,
)
from tinkex.mesh.accounts.lockout import LockOut
from tinkex.mesh.accounts.network import NetworkKnowledge
from tinkex.mesh.accounts.public import PublicAccounts
from tinkex.mesh.accounts.state import AccountsState, Unseal
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.policy import USAGE
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import PeerId
from tinkex.mesh.quota import (
    GatewayLost,
    LeaseAccounted,
    LeaseGranted,
    LeaseSettled,
    QuotaLedger,
    UsageOf,
)
from tinkex.mesh.trust.network import NetworkInfo
from tinkex.mesh.trust.revocations import Revocations
from tinkex.mesh.usage import GatewayUsage, decode_usage


class AuthBook:
    """The fold of "accounts-private": accounts, leases, waits.

    Args:
        data: what `dump` gave; None: nothing yet.
        unseal: decrypts personal fields.
        usage: gives the fold of a gateway's usage feed.
        lockout: counts wrong passwords; it is the worker's, and told of the waits in the log.
    """

    def __init__(
        self, data: bytes | None, *, unseal: Unseal, usage: UsageOf, lockout: LockOut
    ) -> None:
        self.state = AccountsState(unseal)
        self.ledger = QuotaLedger(usage)
        self._lockout = lockout
        if data is not None:
            self._apply(decode_events(data))

    def fold(self, entry: Entry) -> None:
        """Take an entry in.

        Raises:
            msgspec.MsgspecError: it is none of this feed's.
        """
        self._apply(decode_events(entry.payload))

    def dump(self) -> bytes:
        """The state as bytes."""
        return encode_events((*self.state.dump(), *self.ledger.dump(), *self._lockout.dump()))

    def _apply(self, events: tuple[AuthEvent, ...]) -> None:
        for event in events:
            match event:
                case LeaseGranted() | LeaseSettled() | LeaseAccounted() | GatewayLost():
                    self.ledger.apply(event)
                case LockedOut() | LockLifted():
                    self._lockout.apply(event)
                case _:
                    self.state.apply(event)


class PublicBook(PublicAccounts):
    """The fold of "accounts-public".

    Args:
        data: what `dump` gave; None: nothing yet.
        network: tokens of others are refused.
    """

    def __init__(self, data: bytes | None, network: PeerId) -> None:
        super().__init__(network)
        for event in () if data is None else decode_public_events(data):
            self.apply(event)

    def fold(self, entry: Entry) -> None:
        """Take an entry in.

        Raises:
            msgspec.MsgspecError: it is none of this feed's.
        """
        for event in decode_public_events(entry.payload):
            self.apply(event)

    def dump(self) -> bytes:
        """The state as bytes."""
        return encode_events(self.events())


class NetworkBook(NetworkKnowledge):
    """The fold of "network".

    Args:
        data: what `dump` gave; None: nothing yet.
        info: the network as this worker knew it before.
        encoded: the same, as it was signed.
        revocations: told of peers that are shut out.
    """

    def __init__(
        self, data: bytes | None, info: NetworkInfo, encoded: bytes, revocations: Revocations
    ) -> None:
        super().__init__(info, encoded, revocations)
        for event in () if data is None else decode_network_events(data):
            self.apply(event)

    def fold(self, entry: Entry) -> None:
        """Take an entry in.

        Raises:
            msgspec.MsgspecError: it is none of this feed's.
            TrustError: a description of the network that does not hold.
        """
        for event in decode_network_events(entry.payload):
            self.apply(event)

    def dump(self) -> bytes:
        """The state as bytes."""
        return encode_events(self.events())


class UsageBook(GatewayUsage):
    """The fold of one gateway's "usage"."""

    def fold(self, entry: Entry) -> None:
        """Take an entry in.

        Raises:
            msgspec.MsgspecError: it is none of this feed's.
        """
        self.apply(decode_usage(entry.payload), epoch=entry.chain.epoch, sequence=entry.sequence)


def usage_view(feeds: FeedStore, *, on_error: Callable[[BaseException], None]) -> View[UsageBook]:
    """Make the view of "usage", not open: one for gateways, which prune, and auth workers."""
    return View(feeds, USAGE, UsageBook, name="usage", version=2, on_error=on_error)
