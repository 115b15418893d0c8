"""What can happen to accounts: the entries of the auth log.

Owns their form. One entry of the feed "accounts-private" holds the events of one decision, so that
all of them happen or none. Those that gateways need go into "accounts-public" as well, as they are
or, of a key, without its name (`public_form`); those that every member needs into "network".

Times are unix seconds. `sealed` fields are personal: encrypted for one account, unreadable for ever
once that account's key is erased.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from tinkex.mesh.quota import GatewayLost, LeaseAccounted, LeaseGranted, LeaseSettled


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of what happens."""

    at: float


class AccountOpened(Event, frozen=True, tag="account_opened"):
    """Somebody registered."""

    account_id: str
    sealed: bytes
    """A `Person`."""
    quota_tokens: int | None


PERSON = "person"
KEY_NAME = "key-name"
"""What the sealed fields are called to who seals them."""


class Person(msgspec.Struct, frozen=True, array_like=True):
    """The personal fields of an account, as they are sealed."""

    email: str
    """Normalised."""
    password_hash: str

    def __repr__(self) -> str:
        return "Person()"


class AccountClosed(Event, frozen=True, tag="account_closed"):
    """An account is gone, with its keys and sessions."""

    account_id: str


class PasswordChanged(Event, frozen=True, tag="password_changed"):
    """An account has another password."""

    account_id: str
    sealed: bytes
    """A `Person`, with the new hash."""


class QuotaSet(Event, frozen=True, tag="quota_set"):
    """An operator says what an account may use in all."""

    account_id: str
    quota_tokens: int | None


class SessionStarted(Event, frozen=True, tag="session_started"):
    """Somebody logged in."""

    session_id: str
    account_id: str
    refresh_hash: bytes
    expires_at: float


class SessionRefreshed(Event, frozen=True, tag="session_refreshed"):
    """A refresh token was used up, and another given."""

    session_id: str
    refresh_hash: bytes


class SessionEnded(Event, frozen=True, tag="session_ended"):
    """A session is over before its time."""

    session_id: str
    tokens_until: float
    """No access token of it lasts longer."""


class KeyCreated(Event, frozen=True, tag="key_created"):
    """An API key was made."""

    key_id: str
    account_id: str
    key_hash: bytes
    sealed_name: bytes
    prefix: str
    scopes: tuple[str, ...]
    expires_at: float | None
    token_cap: int | None


class KeyPublished(Event, frozen=True, tag="key_published"):
    """An API key was made: what gateways need of it."""

    key_id: str
    account_id: str
    key_hash: bytes
    scopes: tuple[str, ...]
    expires_at: float | None
    token_cap: int | None


class KeyRevoked(Event, frozen=True, tag="key_revoked"):
    """An API key was ended."""

    key_id: str


class LockedOut(Event, frozen=True, tag="locked_out"):
    """Too many wrong passwords."""

    subject: bytes
    """Whose, under a key that is not in the log."""
    failures: int
    until: float


class LockLifted(Event, frozen=True, tag="lock_lifted"):
    """The right password came after the wait."""

    subject: bytes


class PeerJoined(Event, frozen=True, tag="peer_joined"):
    """An invitation was used."""

    grant_key: bytes
    peer: bytes
    certificate: bytes


class PeerRevoked(Event, frozen=True, tag="peer_revoked"):
    """A peer was shut out."""

    peer: bytes


class SigningKeyAdded(Event, frozen=True, tag="signing_key_added"):
    """An auth worker signs access tokens with a new key."""

    kid: str
    author: bytes
    """The auth worker's peer id."""
    public_key: bytes
    sign_until: float
    not_after: float
    """No token that it signed lasts longer."""


class SigningKeyRevoked(Event, frozen=True, tag="signing_key_revoked"):
    """What a signing key signed holds no more."""

    kid: str


class NetworkChanged(Event, frozen=True, tag="network_changed"):
    """The root described the network anew."""

    network: bytes
    """As it was signed."""


PublicEvent = (
    KeyPublished | KeyRevoked | SessionEnded | AccountClosed | SigningKeyAdded | SigningKeyRevoked
)
"""What stands in "accounts-public"."""

NetworkEvent = PeerRevoked | NetworkChanged
"""What stands in "network"."""

AuthEvent = (
    AccountOpened
    | AccountClosed
    | PasswordChanged
    | QuotaSet
    | SessionStarted
    | SessionRefreshed
    | SessionEnded
    | KeyCreated
    | KeyRevoked
    | LockedOut
    | LockLifted
    | PeerJoined
    | PeerRevoked
    | SigningKeyAdded
    | SigningKeyRevoked
    | NetworkChanged
    | LeaseGranted
    | LeaseSettled
    | LeaseAccounted
    | GatewayLost
)
"""What stands in "accounts-private"."""

_SHARED = KeyRevoked | SessionEnded | AccountClosed | SigningKeyAdded | SigningKeyRevoked


def encode_events(events: Iterable[AuthEvent | PublicEvent | NetworkEvent]) -> bytes:
    """Return an entry's payload."""
    return msgspec.msgpack.encode(tuple(events))


def decode_events(payload: bytes) -> tuple[AuthEvent, ...]:
    """Read an entry of "accounts-private".

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return msgspec.msgpack.decode(payload, type=tuple[AuthEvent, ...])


def decode_public_events(payload: bytes) -> tuple[PublicEvent, ...]:
    """Read an entry of "accounts-public".

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return msgspec.msgpack.decode(payload, type=tuple[PublicEvent, ...])


def decode_network_events(payload: bytes) -> tuple[NetworkEvent, ...]:
    """Read an entry of "network".

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return msgspec.msgpack.decode(payload, type=tuple[NetworkEvent, ...])


def network_form(events: Iterable[AuthEvent]) -> Iterator[NetworkEvent]:
    """Say what every member is told of events."""
    return (event for event in events if isinstance(event, NetworkEvent))


def public_form(events: Iterable[AuthEvent]) -> Iterator[PublicEvent]:
    """Say what gateways are told of events."""
    for event in events:
        if isinstance(event, KeyCreated):
            yield KeyPublished(
                at=event.at,
                key_id=event.key_id,
                account_id=event.account_id,
                key_hash=event.key_hash,
                scopes=event.scopes,
                expires_at=event.expires_at,
                token_cap=event.token_cap,
            )
        elif isinstance(event, _SHARED):
            yield event
