"""Registration, logins, sessions, keys: what people ask an auth worker for.

Owns the order of checks: counts of attempts first, then the password, then the decision. `accounts`
has the rules.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar

import msgspec

from tinkex._clock import Clock
from tinkex.errors import (
    AuthenticationError,
    InputError,
    NoQuorumError,
    PermissionDeniedError,
    RateLimitError,
)
from tinkex.mesh.accounts.accounts import (
    Accounts,
    Decision,
    KeyTerms,
    LoggedIn,
    NewKey,
    check_terms,
)
from tinkex.mesh.accounts.addresses import normalised
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import KEY_NAME, PERSON, AuthEvent, Person
from tinkex.mesh.accounts.lockout import LockOut, Subject
from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.accounts.state import Account, AccountsState, Key
from tinkex.mesh.accounts.tokens import Claims
from tinkex.mesh.api import auth
from tinkex.mesh.feeds.vault import Vault
from tinkex.mesh.limits import SlidingWindow
from tinkex.mesh.workers.authority.hashing import Hashing
from tinkex.mesh.workers.authority.log import AuthLog
from tinkex.mesh.workers.authority.signing import Signing

T = TypeVar("T")

HOUR_S = 3600.0
RETRY_MS = 2000


class People:
    """Serves people's wishes.

    Args:
        log: carries decisions out.
        state: the accounts as they are now.
        verify: says who a credential speaks for.
        vault: seals personal fields.
        awaits_keys: whether somebody's key is on its way, so that no address is known to be free.
        hashing: hashes passwords.
        lockout: counts wrong ones.
        signing: signs access tokens.
        config: how much, and how long.
        clock: tells the time.
        random: so many random bytes.
    """

    def __init__(
        self,
        log: AuthLog,
        *,
        state: Callable[[], AccountsState],
        verify: Callable[[str, float], Caller],
        vault: Vault,
        awaits_keys: Callable[[], bool],
        hashing: Hashing,
        lockout: LockOut,
        signing: Signing,
        config: AuthConfig,
        clock: Clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._log = log
        self._state = state
        self._verify = verify
        self._vault = vault
        self._awaits_keys = awaits_keys
        self._hashing = hashing
        self._lockout = lockout
        self._signing = signing
        self._config = config
        self._clock = clock
        self._random = random
        self._registrations = SlidingWindow(config.registrations_per_hour, window_s=HOUR_S)

    # --- accounts -------------------------------------------------------------

    async def register(self, email: str, password: str, source: bytes) -> str:
        """Open an account: its id.

        Raises:
            PermissionDeniedError: registration is closed.
            RateLimitError: the client tried too often, or too many wait.
            InputError: that is no address, or the password is too short or too long.
            ConflictError: the address cannot be registered.
            NoQuorumError: it is not known yet whether it can.
        """
        self._accounts.check_open()
        wait = self._registrations.take(source.hex(), 1, self._clock.monotonic())
        if wait is not None:
            raise RateLimitError(
                "too many registrations from this client: wait, then try again",
                retry_after_ms=int(min(wait, HOUR_S) * 1000) + 1,
            )
        address = normalised(email)
        password_hash = await self._hashing.hash(password)

        async def decide(now: float) -> Decision[str]:
            accounts = self._accounts
            accounts.check_free(address)
            if self._awaits_keys():
                raise _not_known_yet()
            account_id = accounts.new_account_id()
            person = msgspec.msgpack.encode(Person(address, password_hash))
            sealed = await self._vault.seal(account_id, person, field=PERSON)
            return accounts.register(account_id, sealed, now)

        return await self._log.carry(decide)

    async def close_account(self, access_token: str, password: str, source: bytes) -> None:
        """Close an account and erase the person.

        Raises:
            AuthenticationError: the token or the password is wrong.
            RateLimitError: too many wrong passwords.
            NoQuorumError: it is not known yet whether it is.
        """
        account = self._account_of(access_token)
        subjects = (self._lockout.account(account.email), self._lockout.source(source))
        right = await self._right(account, password, subjects)

        async def decide(now: float) -> Decision[None]:
            decision = self._accounts.close(account, right=right, now=now)
            return self._counted(decision, subjects, right=right, now=now)

        await self._log.carry(decide)
        await self._vault.erase(account.account_id)

    async def change_password(
        self, access_token: str, password: str, new_password: str, source: bytes
    ) -> None:
        """Give an account another password; its other sessions end, its API keys stay.

        Raises:
            AuthenticationError: the token or the password is wrong.
            InputError: the new password is too short or too long.
            RateLimitError: too many wrong passwords.
            NoQuorumError: it is not known yet whether the password is wrong.
        """
        session_id = self._caller(access_token).session_id
        account = self._account_of(access_token)
        subjects = (self._lockout.account(account.email), self._lockout.source(source))
        before = account.password_hash
        right = await self._right(account, password, subjects)
        new_hash = await self._hashing.hash(new_password)
        person = msgspec.msgpack.encode(Person(account.email, new_hash))

        async def decide(now: float) -> Decision[None]:
            holds = right and self._is_unchanged(account, before)
            sealed = b""
            if holds:
                sealed = await self._vault.seal(account.account_id, person, field=PERSON)
            decision = self._accounts.change_password(
                account, session_id, sealed, right=holds, now=now
            )
            return self._counted(decision, subjects, right=holds, now=now)

        await self._log.carry(decide)

    # --- sessions -------------------------------------------------------------

    async def log_in(self, email: str, password: str, source: bytes) -> auth.Session:
        """Begin a session.

        Raises:
            AuthenticationError: the address or the password is wrong.
            RateLimitError: too many wrong passwords, or too many wait.
            NoQuorumError: it is not known yet whether they are.
        """
        try:
            address = normalised(email)
        except InputError:
            # What is no address is unknown like any other, in the same time and words.
            address = email[:1024]
        account = self._state().with_email(address)
        subjects = (self._lockout.account(address), self._lockout.source(source))
        before = "" if account is None else account.password_hash
        right = await self._right(account, password, subjects)

        async def decide(now: float) -> Decision[auth.Session]:
            holds = right and self._is_unchanged(account, before)
            decision = self._accounts.log_in(account, right=holds, now=now)
            return self._session(self._counted(decision, subjects, right=holds, now=now), now)

        return await self._log.carry(decide)

    async def refresh(self, refresh_token: str) -> auth.Session:
        """Continue a session.

        Raises:
            AuthenticationError: it has ended, or the token was used before, which ends it.
        """

        async def decide(now: float) -> Decision[auth.Session]:
            return self._session(self._accounts.refresh(refresh_token, now), now)

        return await self._log.carry(decide)

    async def log_out(self, access_token: str) -> None:
        """End the session that a token is of.

        Raises:
            AuthenticationError: the token is none, or its session has ended.
        """
        caller = self._caller(access_token)

        async def decide(now: float) -> Decision[None]:
            return self._accounts.log_out(caller.session_id, now)

        await self._log.carry(decide)

    # --- keys -----------------------------------------------------------------

    async def create_key(self, access_token: str, terms: KeyTerms) -> NewKey:
        """Make an API key.

        Raises:
            AuthenticationError: the token does not hold.
            InputError: the terms make no sense.
            ConflictError: the account has too many keys.
        """
        account_id = self._caller(access_token).account_id
        check_terms(terms)

        async def decide(now: float) -> Decision[NewKey]:
            sealed = await self._vault.seal(account_id, terms.name.encode(), field=KEY_NAME)
            return self._accounts.create_key(account_id, terms, sealed, now)

        return await self._log.carry(decide)

    def keys(self, access_token: str) -> list[tuple[Key, str]]:
        """List an account's keys with their names, newest first.

        Raises:
            AuthenticationError: the token does not hold.
        """
        state = self._state()
        found = self._accounts.keys(self._caller(access_token).account_id, self._clock.now())
        return [(key, state.key_name(key)) for key in found]

    async def revoke_key(self, access_token: str, key_id: str) -> None:
        """End a key.

        Raises:
            AuthenticationError: the token does not hold.
            NotFoundError: the account has no such key.
        """
        account_id = self._caller(access_token).account_id

        async def decide(now: float) -> Decision[None]:
            return self._accounts.revoke_key(account_id, key_id, now)

        await self._log.carry(decide)

    # --- parts ----------------------------------------------------------------

    @property
    def _accounts(self) -> Accounts:
        return Accounts(self._state(), self._config, self._random)

    def _is_unchanged(self, account: Account | None, password_hash: str) -> bool:
        """Whether an account still has the password that was compared."""
        current = None if account is None else self._state().open_account(account.account_id)
        return current is not None and current.password_hash == password_hash

    async def _right(
        self, account: Account | None, password: str, subjects: tuple[Subject, ...]
    ) -> bool:
        self._lockout.check(subjects, self._clock.now())
        return await self._hashing.matches(
            None if account is None else account.password_hash, password
        )

    def _counted(
        self,
        decision: Decision[T],
        subjects: tuple[Subject, ...],
        *,
        right: bool,
        now: float,
    ) -> Decision[T]:
        """Count a wrong password, and forget earlier ones after the right one.

        While somebody's key is on its way, it may be the right one: nobody is told that it is not,
        and it counts for its client alone, as whoever owns the address is to try again.

        Raises:
            RateLimitError: meanwhile so many were wrong that this one counts no more.
        """
        self._lockout.check(subjects, now)
        if right and not isinstance(decision.answer, Exception):
            counted: tuple[AuthEvent, ...] = self._lockout.succeeded(subjects[0], now)
            return Decision((*counted, *decision.events), decision.answer)
        if self._awaits_keys():
            return Decision(self._lockout.failed(subjects[1:], now), _not_known_yet())
        return Decision((*self._lockout.failed(subjects, now), *decision.events), decision.answer)

    def _session(self, decision: Decision[LoggedIn], now: float) -> Decision[auth.Session]:
        """Add the access token, and where there is none, the key that signs it."""
        logged_in = decision.answer
        if not isinstance(logged_in, LoggedIn):
            return Decision(decision.events, logged_in)
        announced, kid = self._signing.key(now)
        claims = Claims(
            account_id=logged_in.account_id,
            session_id=logged_in.session_id,
            issued_at=now,
            expires_at=min(now + self._config.access_s, logged_in.expires_at),
        )
        session = auth.Session(
            access_token=self._signing.sign(kid, claims),
            access_expires_at=claims.expires_at,
            refresh_token=logged_in.refresh_token,
            refresh_expires_at=logged_in.expires_at,
        )
        return Decision((*announced, *decision.events), session)

    def _caller(self, access_token: str) -> Caller:
        caller = self._verify(access_token, self._clock.now())
        if not caller.session_id:
            raise PermissionDeniedError("an API key cannot do that: log in, and use the session")
        return caller

    def _account_of(self, access_token: str) -> Account:
        account = self._state().open_account(self._caller(access_token).account_id)
        if account is None:
            raise AuthenticationError("this account was closed")
        return account


def _not_known_yet() -> NoQuorumError:
    return NoQuorumError(
        "this auth worker waits for another to tell whose accounts there are: nothing was written; "
        "try again in some seconds",
        retry_after_ms=RETRY_MS,
    )
