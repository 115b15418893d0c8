"""All accounts, as the auth log tells them: a fold of events.

Owns what is known and how each event changes it. Decides nothing: `accounts` does, and every event
here has been decided on. Leases are `quota`'s, waits `lockout`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from tinkex.mesh.accounts.events import (
    KEY_NAME,
    PERSON,
    AccountClosed,
    AccountOpened,
    AuthEvent,
    KeyCreated,
    KeyRevoked,
    NetworkChanged,
    PasswordChanged,
    PeerJoined,
    PeerRevoked,
    Person,
    QuotaSet,
    SessionEnded,
    SessionRefreshed,
    SessionStarted,
    SigningKeyAdded,
    SigningKeyRevoked,
)

REMEMBERED_REFRESH_TOKENS = 64
"""Used ones of a session whose second use is noticed; older ones are refused all the same."""
_SWEEP_FROM = 1000


class Unseal(Protocol):
    """Decrypts a personal field."""

    def __call__(self, account_id: str, sealed: bytes, field: str, /) -> bytes | None:
        """Decrypt; None: its key was erased, or is not here yet."""


@dataclass(slots=True, eq=False)
class Session:
    """A login. Times are unix seconds."""

    session_id: str
    account_id: str
    refresh_hash: bytes = field(repr=False)
    started_at: float
    expires_at: float
    used: tuple[bytes, ...] = field(default=(), repr=False)
    """Hashes of refresh tokens that were used up, latest last."""


@dataclass(slots=True, eq=False)
class Key:
    """An API key, without the key."""

    created: KeyCreated = field(repr=False)
    revoked_at: float | None = None

    def is_live(self, now: float) -> bool:
        """Whether it is good for anything at a unix second: neither revoked nor expired."""
        ends = self.created.expires_at
        return self.revoked_at is None and (ends is None or now < ends)


@dataclass(slots=True, eq=False)
class Account:
    """An account. Times are unix seconds."""

    account_id: str
    sealed: bytes = field(repr=False)
    quota_tokens: int | None
    opened_at: float
    email: str = field(default="", repr=False)
    """Normalised; empty where it cannot be read."""
    password_hash: str = field(default="", repr=False)
    keys: dict[str, Key] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    closed: bool = False


class AccountsState:
    """The fold of "accounts-private".

    Args:
        unseal: decrypts personal fields. Where it cannot yet, it is asked again when somebody is
            looked for; the state is a function of the events alone.
    """

    def __init__(self, unseal: Unseal) -> None:
        self._unseal = unseal
        self._unread: set[str] = set()
        self.accounts: dict[str, Account] = {}
        self.sessions: dict[str, Session] = {}
        self.ended_sessions: dict[str, SessionEnded] = {}
        """Those of which an access token may still be about, and older ones for a while."""
        self.joined: dict[bytes, PeerJoined] = {}
        """By the public key of the invitation."""
        self.revoked_peers: dict[bytes, PeerRevoked] = {}
        self.signing_keys: dict[str, SigningKeyAdded] = {}
        self.revoked_signing_keys: dict[str, SigningKeyRevoked] = {}
        self.network: NetworkChanged | None = None
        self._sweep_at = _SWEEP_FROM
        self._by_email: dict[str, str] = {}
        self._account_of_key: dict[str, str] = {}

    def with_email(self, email: str) -> Account | None:
        """Return the account that has a normalised address."""
        for account_id in tuple(self._unread):
            self._read(self.accounts[account_id])
        return self.accounts.get(self._by_email.get(email, ""))

    def open_account(self, account_id: str) -> Account | None:
        """Return an account that is not closed."""
        account = self.accounts.get(account_id)
        return None if account is None or account.closed else account

    def key(self, key_id: str) -> Key | None:
        """Return a key, revoked or not."""
        account = self.accounts.get(self._account_of_key.get(key_id, ""))
        return None if account is None else account.keys.get(key_id)

    def dump(self) -> Iterator[AuthEvent]:
        """Give events, in few, that come to this state. Personal fields stay sealed."""
        for account in self.accounts.values():
            at = account.opened_at
            yield AccountOpened(
                at=at,
                account_id=account.account_id,
                sealed=account.sealed,
                quota_tokens=account.quota_tokens,
            )
            if account.closed:
                yield AccountClosed(at=at, account_id=account.account_id)
            for key in account.keys.values():
                yield key.created
                if key.revoked_at is not None:
                    yield KeyRevoked(at=key.revoked_at, key_id=key.created.key_id)
            for session in account.sessions.values():
                yield from _dump_of(session)
        yield from self.ended_sessions.values()
        yield from self.joined.values()
        yield from self.revoked_peers.values()
        yield from self.signing_keys.values()
        yield from self.revoked_signing_keys.values()
        if self.network is not None:
            yield self.network

    def apply(self, event: AuthEvent) -> None:
        """Fold one event."""
        match event:
            case AccountOpened():
                self._open(event)
            case AccountClosed():
                self._close(event)
            case PasswordChanged():
                self._change_password(event)
            case QuotaSet():
                if event.account_id in self.accounts:
                    self.accounts[event.account_id].quota_tokens = event.quota_tokens
            case SessionStarted():
                self._start(event)
            case SessionRefreshed():
                self._refresh(event)
            case SessionEnded():
                self._end(event.session_id)
                self._keep_ended(event)
            case KeyCreated():
                self._create_key(event)
            case KeyRevoked():
                key = self.key(event.key_id)
                if key is not None and key.revoked_at is None:
                    key.revoked_at = event.at
            case _:
                self._apply_to_network(event)

    def _apply_to_network(self, event: AuthEvent) -> None:
        match event:
            case PeerJoined():
                before = self.joined.get(event.grant_key)
                if before is None or before.peer == event.peer:  # certified anew
                    self.joined[event.grant_key] = event
            case PeerRevoked():
                self.revoked_peers.setdefault(event.peer, event)
            case SigningKeyAdded():
                self.signing_keys.setdefault(event.kid, event)
            case SigningKeyRevoked():
                self.revoked_signing_keys.setdefault(event.kid, event)
            case NetworkChanged():
                self.network = event

    def _open(self, event: AccountOpened) -> None:
        account = Account(event.account_id, event.sealed, event.quota_tokens, event.at)
        self.accounts[event.account_id] = account
        self._unread.add(event.account_id)
        self._read(account)

    def _read(self, account: Account) -> None:
        opened = account.sealed and self._unseal(account.account_id, account.sealed, PERSON)
        if not opened:
            return
        person = msgspec.msgpack.decode(opened, type=Person)
        account.email, account.password_hash = person.email, person.password_hash
        self._unread.discard(account.account_id)
        self._by_email.setdefault(person.email, account.account_id)

    def _change_password(self, event: PasswordChanged) -> None:
        account = self.open_account(event.account_id)
        if account is None:
            return
        account.sealed = event.sealed
        account.password_hash = ""  # the old one holds no more, also where the new is not read yet
        self._unread.add(event.account_id)
        self._read(account)

    def key_name(self, key: Key) -> str:
        """Read what a person called a key; empty where that cannot be read."""
        created = key.created
        return (self._unseal(created.account_id, created.sealed_name, KEY_NAME) or b"").decode()

    def _close(self, event: AccountClosed) -> None:
        account = self.accounts.get(event.account_id)
        if account is None:
            return
        if self._by_email.get(account.email) == account.account_id:
            del self._by_email[account.email]
        for session_id in list(account.sessions):
            self._end(session_id)
        for key_id in account.keys:
            self._account_of_key.pop(key_id, None)
        account.keys.clear()
        self._unread.discard(event.account_id)
        account.email = account.password_hash = ""
        account.sealed = b""
        account.closed = True

    def _start(self, event: SessionStarted) -> None:
        account = self.open_account(event.account_id)
        if account is None:
            return
        for session in list(account.sessions.values()):
            if session.expires_at <= event.at:
                self._end(session.session_id)
        session = Session(
            event.session_id, event.account_id, event.refresh_hash, event.at, event.expires_at
        )
        self.sessions[event.session_id] = account.sessions[event.session_id] = session

    def _refresh(self, event: SessionRefreshed) -> None:
        session = self.sessions.get(event.session_id)
        if session is not None:
            session.used = (*session.used, session.refresh_hash)[-REMEMBERED_REFRESH_TOKENS:]
            session.refresh_hash = event.refresh_hash

    def _end(self, session_id: str) -> None:
        session = self.sessions.pop(session_id, None)
        if session is not None:
            self.accounts[session.account_id].sessions.pop(session_id, None)

    def _keep_ended(self, event: SessionEnded) -> None:
        ended = self.ended_sessions
        if len(ended) >= self._sweep_at:
            ended = {name: one for name, one in ended.items() if one.tokens_until > event.at}
            self.ended_sessions = ended
            self._sweep_at = max(_SWEEP_FROM, 2 * len(ended))
        ended[event.session_id] = event

    def _create_key(self, event: KeyCreated) -> None:
        account = self.open_account(event.account_id)
        if account is not None:
            account.keys[event.key_id] = Key(event)
            self._account_of_key[event.key_id] = event.account_id


def _dump_of(session: Session) -> Iterator[AuthEvent]:
    hashes = (*session.used, session.refresh_hash)
    yield SessionStarted(
        at=session.started_at,
        session_id=session.session_id,
        account_id=session.account_id,
        refresh_hash=hashes[0],
        expires_at=session.expires_at,
    )
    for used in hashes[1:]:
        yield SessionRefreshed(
            at=session.started_at, session_id=session.session_id, refresh_hash=used
        )
