"""What is sent about accounts and keys, there and back: our own part of the wire.

Owns the form. No message holds a password's or a key's hash, and only `NewKeyResponse` a key.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from tinkex.server.accounts.directory import KeyTerms

if TYPE_CHECKING:
    from tinkex.server.accounts.records import Account, ApiKey


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoginRequest(_Request):
    """An address and its password."""

    email: str
    password: str = Field(repr=False)


class LoginResponse(BaseModel):
    """A token, to be sent where an API key would be."""

    jwt: str = Field(repr=False)
    expires_at: datetime


class CreateKeyRequest(_Request):
    """A key to be made; every limit that is left out is none."""

    name: str
    note: str = ""
    scopes: list[str] | None = None
    """Of train, sample, read, admin; None for all that the account may."""
    lifetime_s: float | None = None
    """Seconds until it expires."""
    max_tokens: int | None = None
    """Tokens that it may train on, read and sample in all."""
    max_seconds: float | None = None
    """Seconds of the engine's time that it may use in all."""

    def terms(self) -> KeyTerms:
        """Return its limits, checked.

        Raises:
            InputError: one of them cannot be.
        """
        return KeyTerms(
            scopes=None if self.scopes is None else frozenset(self.scopes),
            lifetime_s=self.lifetime_s,
            max_tokens=self.max_tokens,
            max_seconds=self.max_seconds,
        )


class KeyResponse(BaseModel):
    """A key, without what would let anybody use it."""

    key_id: str
    account_id: str
    prefix: str
    """Its first characters."""
    name: str
    note: str
    scopes: list[str]
    given: bool
    """Whether the operator's settings or key file name it."""
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    max_tokens: int | None
    max_seconds: float | None


class NewKeyResponse(KeyResponse):
    """A key that was just made."""

    key: str = Field(repr=False)
    """The key itself. It is kept nowhere, and never shown again."""


class KeysResponse(BaseModel):
    """The keys of an account, oldest first, ended ones too."""

    keys: list[KeyResponse]


class CreateAccountRequest(_Request):
    """An account to be made."""

    name: str
    email: str | None = None
    role: str = "member"
    password: str | None = Field(default=None, repr=False)


class ChangeAccountRequest(_Request):
    """What is to change; what is left out stays."""

    role: str | None = None
    disabled: StrictBool | None = None
    password: str | None = Field(default=None, repr=False)


class AccountResponse(BaseModel):
    """An account."""

    account_id: str
    name: str
    email: str | None
    role: str
    has_password: bool
    created_at: datetime
    disabled_at: datetime | None


class AccountsResponse(BaseModel):
    """Every account, oldest first."""

    accounts: list[AccountResponse]


def describe_key(key: ApiKey, account: Account) -> KeyResponse:
    """Say of a key what may be said; its scopes are those that the account's role leaves it."""
    return KeyResponse(
        key_id=key.key_id,
        account_id=key.account_id,
        prefix=key.prefix,
        name=key.name,
        note=key.note,
        scopes=sorted(key.scopes & account.scopes),
        given=key.given,
        created_at=moment(key.created_at),
        expires_at=None if key.expires_at is None else moment(key.expires_at),
        revoked_at=None if key.revoked_at is None else moment(key.revoked_at),
        max_tokens=key.max_tokens,
        max_seconds=key.max_seconds,
    )


def describe_account(account: Account) -> AccountResponse:
    """Say of an account what may be said."""
    return AccountResponse(
        account_id=account.account_id,
        name=account.name,
        email=account.email,
        role=account.role,
        has_password=account.password_hash is not None,
        created_at=moment(account.created_at),
        disabled_at=None if account.disabled_at is None else moment(account.disabled_at),
    )


def moment(seconds: float) -> datetime:
    """Return unix seconds as a moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC)
