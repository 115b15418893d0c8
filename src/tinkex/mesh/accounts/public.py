"""What gateways know of accounts: enough to verify a key or a token offline, and nothing personal.

Owns that view, a fold of the feed "accounts-public". What is wrong with a credential is said only
to who holds it: a key is found by the hash of its 256 bits, a token's dates are read once its
signature held, and everything else gets one and the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from tinkex.errors import AuthenticationError, PermissionDeniedError
from tinkex.mesh.accounts.credentials import KEY_PREFIX, UnknownCredentialError, digest
from tinkex.mesh.accounts.events import (
    AccountClosed,
    KeyPublished,
    KeyRevoked,
    PublicEvent,
    SessionEnded,
    SigningKeyAdded,
    SigningKeyRevoked,
)
from tinkex.mesh.accounts.scopes import SCOPES
from tinkex.mesh.accounts.tokens import TokenReader, is_token
from tinkex.mesh.identity import PeerId

_SWEEP_FROM = 10_000


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who a credential speaks for, and what it may do."""

    account_id: str
    key_id: str = ""
    """The API key's; empty for an access token."""
    session_id: str = ""
    """The access token's; empty for an API key."""
    scopes: frozenset[str] = frozenset()

    def need(self, scope: str) -> None:
        """Check that the credential is for something.

        Raises:
            PermissionDeniedError: it is not.
        """
        if scope not in self.scopes:
            raise PermissionDeniedError(
                f"this API key may not do that: it needs the scope {scope!r}; make a key with it"
            )


class PublicAccounts:
    """The fold of "accounts-public".

    Args:
        network: tokens of others are refused.
    """

    def __init__(self, network: PeerId) -> None:
        self.tokens = TokenReader(network)
        self._keys: dict[bytes, KeyPublished] = {}
        self._key_hashes: dict[str, bytes] = {}
        self._revoked_keys: dict[str, None] = {}
        self._ended_sessions: dict[str, float] = {}
        self._sweep_at = _SWEEP_FROM
        self._closed_accounts: dict[str, None] = {}

    def apply(self, event: PublicEvent) -> None:
        """Fold one event; one that came before changes nothing, and their order does not matter."""
        match event:
            case KeyPublished():
                self._keys.setdefault(event.key_hash, event)
                self._key_hashes.setdefault(event.key_id, event.key_hash)
            case KeyRevoked():
                self._revoked_keys[event.key_id] = None
            case SessionEnded():
                self._end_session(event)
            case AccountClosed():
                self._closed_accounts[event.account_id] = None
            case SigningKeyAdded():
                self.tokens.add(event)
            case SigningKeyRevoked():
                self.tokens.revoke(event.kid)

    def events(self) -> Iterator[PublicEvent]:
        """Give events, in few, that come to this view."""
        yield from self._keys.values()
        for key_id in self._revoked_keys:
            yield KeyRevoked(at=0.0, key_id=key_id)
        for session_id, until in self._ended_sessions.items():
            yield SessionEnded(at=0.0, session_id=session_id, tokens_until=until)
        for account_id in self._closed_accounts:
            yield AccountClosed(at=0.0, account_id=account_id)
        yield from self.tokens.dump()

    def knows(self, event: PublicEvent) -> bool:
        """Whether an event would change nothing."""
        match event:
            case KeyPublished():
                return event.key_id in self._key_hashes
            case KeyRevoked():
                return event.key_id in self._revoked_keys
            case SessionEnded():
                return event.session_id in self._ended_sessions
            case AccountClosed():
                return event.account_id in self._closed_accounts
            case SigningKeyAdded():
                return self.tokens.knows(event.kid)
            case SigningKeyRevoked():
                return self.tokens.knows_revoked(event.kid)

    def verify(self, credential: str, now: float) -> Caller:
        """Say who a credential speaks for.

        Args:
            credential: an API key or an access token.
            now: unix seconds.

        Raises:
            UnknownCredentialError: it is not known here.
            AuthenticationError: 401: it is none, has expired, or was revoked.
        """
        caller = (
            self._session(credential, now) if is_token(credential) else self._key(credential, now)
        )
        self._check_open(caller)
        return caller

    def _session(self, token: str, now: float) -> Caller:
        claims = self.tokens.read(token, now)
        self._check_goes_on(claims.session_id)
        return Caller(account_id=claims.account_id, session_id=claims.session_id, scopes=SCOPES)

    def _key(self, key: str, now: float) -> Caller:
        found = self._keys.get(digest(key))
        if found is None:
            unknown = "the API key is not known here: check it"
            if key.startswith(KEY_PREFIX):
                raise UnknownCredentialError(unknown)
            raise AuthenticationError(f"{unknown}; one of this network begins with {KEY_PREFIX}")
        self._check_not_revoked(found)
        self._check_not_expired(found, now)
        return Caller(
            account_id=found.account_id,
            key_id=found.key_id,
            scopes=frozenset(found.scopes),
        )

    def _check_open(self, caller: Caller) -> None:
        if caller.account_id in self._closed_accounts:
            raise AuthenticationError("this account was closed")

    def _check_goes_on(self, session_id: str) -> None:
        if session_id in self._ended_sessions:
            raise AuthenticationError("this session has ended: log in again")

    def _check_not_revoked(self, key: KeyPublished) -> None:
        if key.key_id in self._revoked_keys:
            raise AuthenticationError("this API key was revoked: make a new one")

    def _check_not_expired(self, key: KeyPublished, now: float) -> None:
        if key.expires_at is not None and now >= key.expires_at:
            raise AuthenticationError("this API key has expired: make a new one")

    def _end_session(self, event: SessionEnded) -> None:
        # What ended so long ago that no token of it lasts is forgotten, by the log's own time.
        ended = self._ended_sessions
        if len(ended) >= self._sweep_at:
            ended = {name: until for name, until in ended.items() if until > event.at}
            self._ended_sessions = ended
            self._sweep_at = max(_SWEEP_FROM, 2 * len(ended))
        ended[event.session_id] = event.tokens_until
