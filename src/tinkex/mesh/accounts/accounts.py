"""What is decided about accounts: wishes in, events and answers out.

Owns every rule on registration, logins, sessions and keys. Pure: a decision changes nothing until
its events are in the log and folded, and whoever carries it out takes one decision after another.
Passwords are hashed by the caller, before: a hash takes 50 ms, and as long for who is unknown.

Registering an address that has an account is refused, in the same words as one that is not wanted
here. That answer tells that the address is taken, which no registration without e-mail can hide; so
strangers get few attempts (`registrations_per_hour`), only invited clients are strangers, and the
work is the same in both cases up to that answer. A login tells nothing: an unknown address and a
wrong password take the same work, and get the same words.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tinkex.errors import (
    AuthenticationError,
    ConflictError,
    InputError,
    NotFoundError,
    PermissionDeniedError,
    TinkerError,
)
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.credentials import (
    digest,
    new_id,
    new_key,
    new_refresh_token,
    session_of,
    visible_prefix,
)
from tinkex.mesh.accounts.events import (
    AccountClosed,
    AccountOpened,
    AuthEvent,
    KeyCreated,
    KeyRevoked,
    PasswordChanged,
    SessionEnded,
    SessionRefreshed,
    SessionStarted,
)
from tinkex.mesh.accounts.scopes import SCOPES
from tinkex.mesh.accounts.state import Account, AccountsState, Key, Session

T = TypeVar("T")

MAX_NAME_LENGTH = 64
LISTED_ENDED = 1000
"""Keys in a list that were revoked or have expired: one message holds no more than some thousands.
"""
MAX_KEY_LIFE_S = 10 * 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """Events to append, and what to answer then."""

    events: tuple[AuthEvent, ...]
    answer: T | TinkerError
    """An error is raised, once the events are in the log."""


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A session that goes on."""

    account_id: str
    session_id: str
    refresh_token: str
    expires_at: float
    """When the session ends, in unix seconds."""

    def __repr__(self) -> str:
        return f"LoggedIn({self.account_id}, {self.session_id})"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made, shown once."""

    key: str
    created: KeyCreated

    def __repr__(self) -> str:
        return f"NewKey({self.created.key_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What somebody wants a key to be."""

    name: str
    scopes: frozenset[str]
    expires_in_s: float | None = None
    token_cap: int | None = None


class Accounts:
    """Decides on what people ask for.

    Args:
        state: the fold of the log; read, never changed here.
        config: how much, and how long.
        random: so many random bytes.
    """

    def __init__(
        self,
        state: AccountsState,
        config: AuthConfig,
        random: Callable[[int], bytes],
    ) -> None:
        self._state = state
        self._config = config
        self._random = random

    def check_open(self) -> None:
        """Refuse to register anybody where that is switched off.

        Raises:
            PermissionDeniedError: it is.
        """
        if not self._config.registration_open:
            raise PermissionDeniedError("this network takes no new accounts: ask who runs it")

    def check_free(self, email: str) -> None:
        """Refuse an address that has an account.

        Raises:
            ConflictError: it has.
        """
        if self._state.with_email(email) is not None:
            raise ConflictError("this address cannot be registered here; if it is yours, log in")

    def new_account_id(self) -> str:
        """Name an account that is to be opened; what is personal of it is sealed for this name."""
        return new_id("acc", self._random)

    def register(self, account_id: str, sealed: bytes, now: float) -> Decision[str]:
        """Open an account: its id. Its address was found free just now."""
        event = AccountOpened(
            at=now,
            account_id=account_id,
            sealed=sealed,
            quota_tokens=self._config.default_quota_tokens,
        )
        return Decision((event,), account_id)

    def log_in(self, account: Account | None, *, right: bool, now: float) -> Decision[LoggedIn]:
        """Begin a session; `account` was found before its password was compared.

        One that was closed meanwhile is refused like one that is unknown.
        """
        current = None if account is None else self._state.open_account(account.account_id)
        if current is None or account is None or not right or current.email != account.email:
            return Decision((), AuthenticationError("the e-mail address or the password is wrong"))
        session_id = new_id("ses", self._random)
        token = new_refresh_token(session_id, self._random)
        started = SessionStarted(
            at=now,
            session_id=session_id,
            account_id=current.account_id,
            refresh_hash=digest(token),
            expires_at=now + self._config.session_s,
        )
        live = [each for each in current.sessions.values() if each.expires_at > now]
        live.sort(key=lambda each: each.started_at)
        surplus = live[: max(0, len(live) - self._config.max_sessions + 1)]
        ended = tuple(self._ended(each, now) for each in surplus)
        answer = LoggedIn(current.account_id, session_id, token, started.expires_at)
        return Decision((*ended, started), answer)

    def refresh(self, refresh_token: str, now: float) -> Decision[LoggedIn]:
        """Use a refresh token up. One that was used before ends its session: somebody stole it."""
        session = self._state.sessions.get(session_of(refresh_token) or "")
        hashed = digest(refresh_token)
        if session is not None and self._was_used(session, hashed):
            return Decision(
                (self._ended(session, now),),
                AuthenticationError(
                    "this refresh token was used before: the session has ended; log in again"
                ),
            )
        if session is None or hashed != session.refresh_hash or session.expires_at <= now:
            return Decision((), AuthenticationError("this session has ended: log in again"))
        token = new_refresh_token(session.session_id, self._random)
        event = SessionRefreshed(at=now, session_id=session.session_id, refresh_hash=digest(token))
        answer = LoggedIn(session.account_id, session.session_id, token, session.expires_at)
        return Decision((event,), answer)

    def log_out(self, session_id: str, now: float) -> Decision[None]:
        """End a session; harmless twice."""
        session = self._state.sessions.get(session_id)
        return Decision(() if session is None else (self._ended(session, now),), None)

    def create_key(
        self, account_id: str, terms: KeyTerms, sealed_name: bytes, now: float
    ) -> Decision[NewKey]:
        """Make an API key.

        Raises:
            InputError: the terms make no sense.
            AuthenticationError: the account is closed.
            ConflictError: the account has too many keys.
        """
        check_terms(terms)
        account = self._account(account_id)
        live = [key for key in account.keys.values() if key.is_live(now)]
        if len(live) >= self._config.max_keys:
            raise ConflictError(
                f"the account has {len(live)} API keys, as many as it may: revoke one first"
            )
        key = new_key(self._random)
        created = KeyCreated(
            at=now,
            key_id=new_id("key", self._random),
            account_id=account_id,
            key_hash=digest(key),
            sealed_name=sealed_name,
            prefix=visible_prefix(key),
            scopes=tuple(sorted(terms.scopes)),
            expires_at=None if terms.expires_in_s is None else now + terms.expires_in_s,
            token_cap=terms.token_cap,
        )
        return Decision((created,), NewKey(key, created))

    def keys(self, account_id: str, now: float) -> list[Key]:
        """List an account's keys, newest first: of those that have ended, the newest.

        Raises:
            AuthenticationError: the account is closed.
        """
        keys = self._account(account_id).keys.values()
        newest = sorted(keys, key=lambda key: key.created.at, reverse=True)
        ended = [key for key in newest if not key.is_live(now)]
        left_out = {key.created.key_id for key in ended[LISTED_ENDED:]}
        return [key for key in newest if key.created.key_id not in left_out]

    def revoke_key(self, account_id: str, key_id: str, now: float) -> Decision[None]:
        """End a key; harmless twice.

        Raises:
            NotFoundError: the account has no such key, whoever else may have it.
        """
        key = self._account(account_id).keys.get(key_id)
        if key is None:
            raise NotFoundError("the account has no API key of this id")
        if key.revoked_at is not None:
            return Decision((), None)
        return Decision((KeyRevoked(at=now, key_id=key_id),), None)

    def change_password(
        self, account: Account, session_id: str, sealed: bytes, *, right: bool, now: float
    ) -> Decision[None]:
        """Give an account another password, and end every session of it but one."""
        current = self._state.open_account(account.account_id)
        if not right or current is None:
            return Decision((), AuthenticationError("the password is wrong"))
        others = [one for one in current.sessions.values() if one.session_id != session_id]
        changed = PasswordChanged(at=now, account_id=current.account_id, sealed=sealed)
        return Decision((changed, *(self._ended(each, now) for each in others)), None)

    def close(self, account: Account, *, right: bool, now: float) -> Decision[None]:
        """Close an account; its personal fields are to be erased after."""
        if not right or self._state.open_account(account.account_id) is None:
            return Decision((), AuthenticationError("the password is wrong"))
        return Decision((AccountClosed(at=now, account_id=account.account_id),), None)

    def _was_used(self, session: Session, refresh_hash: bytes) -> bool:
        return refresh_hash in session.used

    def _account(self, account_id: str) -> Account:
        account = self._state.open_account(account_id)
        if account is None:
            raise AuthenticationError("this account was closed")
        return account

    def _ended(self, session: Session, now: float) -> SessionEnded:
        until = min(now + self._config.access_s, session.expires_at)
        return SessionEnded(at=now, session_id=session.session_id, tokens_until=until)


def check_terms(terms: KeyTerms) -> None:
    """Check what a key is wanted to be.

    Raises:
        InputError: it makes no sense.
    """
    if not (0 < len(terms.name) <= MAX_NAME_LENGTH and terms.name.isprintable()):
        raise InputError(f"name: a key's name has 1 to {MAX_NAME_LENGTH} printable characters")
    if not terms.scopes or not terms.scopes <= SCOPES:
        raise InputError(f"scopes: a key is for one or more of {', '.join(sorted(SCOPES))}")
    life = terms.expires_in_s
    if life is not None and not (math.isfinite(life) and 0 < life <= MAX_KEY_LIFE_S):
        raise InputError("expires_in_s: a key lasts more than 0 seconds, and at most ten years")
    if terms.token_cap is not None and not 0 < terms.token_cap < 2**53:
        raise InputError("token_cap: the most tokens of a key are a number above 0; leave it out")
