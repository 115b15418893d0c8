"""Accounts and keys as they are stored, and what they amount to at a moment.

Owns the two records. Where they are kept is `store`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkex.server.accounts.caller import ADMIN, MEMBER_SCOPES, SCOPES, Caller

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Somebody who uses the server: a person, a team, or a key that the operator gave it.

    Times are unix seconds.
    """

    account_id: str
    name: str
    email: str | None
    """What its owner logs in with; None for an account without a password."""
    role: str
    """`admin` or `member`."""
    password_hash: str | None = field(repr=False)
    """Of argon2id."""
    created_at: float
    disabled_at: float | None = None
    """Since when none of its keys and logins works."""
    logins_after: float = 0.0
    """Logins from before this moment have ended: a new password ends them all."""

    @property
    def scopes(self) -> frozenset[str]:
        """The most that a key of this account may be used for."""
        return SCOPES if self.role == ADMIN else MEMBER_SCOPES


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key, without what would let anybody use it. Times are unix seconds."""

    key_id: str
    account_id: str
    digest: str = field(repr=False)
    """SHA-256 of the key, in hex."""
    prefix: str
    """Its first characters, to know it by."""
    name: str
    note: str
    scopes: frozenset[str]
    given: bool
    """Whether the operator's settings or key file name it; what they say goes then."""
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    max_tokens: int | None = None
    """Tokens it may train on, read and sample in all; None for no end."""
    max_seconds: float | None = None
    """Seconds of the engine's time that it may use in all; None for no end."""

    @property
    def is_capped(self) -> bool:
        """Whether there is an end to what it may spend."""
        return self.max_tokens is not None or self.max_seconds is not None

    def ended(self, now: float) -> str | None:
        """Say in a word why it does not work at a moment: revoked, expired; None if it does."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return None

    def caller(self, account: Account) -> Caller:
        """Return who calls with this key: never more than the account's role allows."""
        return Caller(account.account_id, self.key_id, account.role, self.scopes & account.scopes)


def account_of(row: Mapping[str, Any]) -> Account:
    """Read an account from its row."""
    return Account(**row)


def key_of(row: Mapping[str, Any]) -> ApiKey:
    """Read a key from its row."""
    return ApiKey(
        **{**row, "scopes": frozenset(row["scopes"].split()), "given": bool(row["given"])}
    )
