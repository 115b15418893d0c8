"""From a credential to a caller.

Owns which credentials are taken: an API key that works, or a token of one, or of a login. Every
request is decided anew from the database, so that what was revoked, disabled or lowered counts at
once, also for clients in the middle of a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.server.accounts.caller import Caller
from tinkex.server.accounts.keys import digest_of
from tinkex.server.accounts.tokens import Claims, InvalidTokenError
from tinkex.server.refusal import invalid_token, unauthorized

if TYPE_CHECKING:
    from tinkex._clock import Clock
    from tinkex.server.accounts.records import Account, ApiKey
    from tinkex.server.accounts.store import AccountStore
    from tinkex.server.accounts.tokens import TokenIssuer

TOKEN_START = "eyJ"  # noqa: S105 - how every JSON web token begins
LONGEST_LOGIN_S = 12 * 3600.0
"""Seconds after which a login with a password ends, however often its token was renewed."""


class Authenticator:
    """Finds out who calls.

    Args:
        store: the accounts and keys.
        tokens: reads tokens.
        clock: tells what has expired.
    """

    def __init__(self, store: AccountStore, tokens: TokenIssuer, clock: Clock) -> None:
        self._store = store
        self._tokens = tokens
        self._clock = clock

    def caller(self, credential: str) -> Caller:
        """Return who is behind a key or a token.

        Raises:
            Refusal: 401 for one that does not work; of a token so that clients get another one.
        """
        if credential.startswith(TOKEN_START):
            return self._caller_of_token(credential)
        return self._caller_of_key(self._store.key_with_digest(digest_of(credential)))

    def claims(self, credential: str) -> Claims:
        """Return what a new token for this credential may say.

        Raises:
            Refusal: 401 for one that does not work.
        """
        caller = self.caller(credential)
        if credential.startswith(TOKEN_START):
            return self._tokens.read(credential)
        account = self._store.account(caller.owner)
        return Claims(
            account_id=caller.owner,
            email=(account and account.email) or "",
            key_id=caller.key_id,
            logged_in_at=self._clock.now(),
        )

    def _caller_of_key(self, key: ApiKey | None) -> Caller:
        account = None if key is None else self._store.account(key.account_id)
        if key is None or account is None:
            raise unauthorized(
                "This API key is not accepted here: use one of this server's own keys."
            )
        ended = key.ended(self._clock.now())
        if ended is not None:
            raise unauthorized(f"This API key is {ended}: ask for a new one.")
        _check_enabled(account)
        return key.caller(account)

    def _caller_of_token(self, token: str) -> Caller:
        try:
            claims = self._tokens.read(token)
        except InvalidTokenError as error:
            raise invalid_token(f"This token is not accepted: {error}. Get a new one.") from error
        if claims.key_id is not None:
            return self._caller_of_key(self._store.key(claims.key_id))
        account = self._store.account(claims.account_id)
        ended = claims.logged_in_at + LONGEST_LOGIN_S <= self._clock.now()
        if account is None or ended or claims.logged_in_at < account.logins_after:
            raise invalid_token("This login has ended. Log in again.")
        _check_enabled(account)
        return Caller(
            account.account_id, f"login-{account.account_id}", account.role, account.scopes
        )


def _check_enabled(account: Account) -> None:
    if account.disabled_at is not None:
        raise unauthorized("This account is disabled: ask the server's admin.")
