"""Making and changing accounts and keys.

Owns the rules: what a name, an address, a role, a scope or a cap may be, and what a key can be
given. Who may call is decided before, by the routes; the command line is the operator's. Every call
blocks.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkex.errors import InputError, NotFoundError
from tinkex.passwords import Passwords
from tinkex.server.accounts.caller import ADMIN, MEMBER, ROLES, SCOPES
from tinkex.server.accounts.keys import GivenKey, digest_of, key_id_of, new_key, visible_prefix
from tinkex.server.accounts.records import Account, ApiKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinkex._clock import Clock
    from tinkex.server.accounts.store import AccountStore
    from tinkex.server.records.audit import AuditEvent

MAX_NAME_LENGTH = 200
MAX_NOTE_LENGTH = 2000
ACCOUNT_ID_BYTES = 8
LONGEST_KEY_LIFE_S = 10 * 366 * 86_400.0
_ADDRESS = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a key may be used for, how long, and how much.

    Raises:
        InputError: for an unknown scope, or a number that is not above zero.
    """

    scopes: frozenset[str] | None = None
    """None for all that the account's role allows."""
    lifetime_s: float | None = None
    """Seconds until it expires; None for never."""
    max_tokens: int | None = None
    """Tokens that it may train on, read and sample in all; None for no end."""
    max_seconds: float | None = None
    """Seconds of the engine's time in all; None for no end."""

    def __post_init__(self) -> None:
        if self.scopes is not None:
            unknown = sorted(self.scopes - SCOPES)
            if unknown or not self.scopes:
                named = f"{', '.join(unknown)} is none of" if unknown else "give at least one of"
                raise InputError(f"scopes: {named} {', '.join(sorted(SCOPES))}.")
        for name in ("lifetime_s", "max_tokens", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 2**62:
                raise InputError(f"{name} is {value}: it must be above 0.")
        if self.lifetime_s is not None and self.lifetime_s > LONGEST_KEY_LIFE_S:
            raise InputError("A key lives ten years at most; give no lifetime for one without end.")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only time that the key itself is at hand."""

    key: ApiKey
    secret: str = field(repr=False)


class Directory:
    """The accounts and keys of a server.

    Args:
        store: where they are kept; open.
        clock: tells when something was made.
        passwords: hashes them.
    """

    def __init__(
        self, store: AccountStore, clock: Clock, passwords: Passwords | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._passwords = passwords or Passwords()

    # accounts

    def accounts(self) -> list[Account]:
        """Return every account, oldest first."""
        return self._store.accounts()

    def account(self, account_id: str) -> Account:
        """Return an account.

        Raises:
            NotFoundError: there is none of this id.
        """
        found = self._store.account(account_id)
        if found is None:
            raise NotFoundError(f"There is no account {account_id!r}.")
        return found

    def create_account(
        self,
        name: str,
        *,
        email: str | None = None,
        role: str = MEMBER,
        password: str | None = None,
    ) -> Account:
        """Make an account. It has no key yet.

        Raises:
            InputError: for a bad name, address, role or password, or an address that is taken.
        """
        account = Account(
            account_id=f"acct-{secrets.token_hex(ACCOUNT_ID_BYTES)}",
            name=_checked_name(name, "account"),
            email=None if email is None else _checked_address(email),
            role=_checked_role(role),
            password_hash=self._hashed(password, email),
            created_at=self._clock.now(),
        )
        self._store.add_account(account)
        return account

    def change_account(
        self,
        account_id: str,
        *,
        role: str | None = None,
        disabled: bool | None = None,
        password: str | None = None,
    ) -> Account:
        """Change what is given of an account, at once: all of it, or nothing where any is refused.

        Args:
            account_id: which one.
            role: its keys change with it.
            disabled: whether its keys and logins stop. Nothing is deleted.
            password: a new one; every login from before ends.

        Raises:
            NotFoundError: there is no such account.
            InputError: no such role, nobody would be left to administer, or the password is too
                short or for an account without an address to log in with.
        """
        account, now = self.account(account_id), self._clock.now()
        changes: dict[str, Any] = {}
        if role is not None:
            changes["role"] = _checked_role(role)
        if disabled is not None:
            changes["disabled_at"] = now if disabled else None
        if disabled or role not in {None, ADMIN}:
            self._keep_an_admin(account)
        if password is not None:
            changes |= {
                "password_hash": self._hashed(password, account.email),
                "logins_after": now,
            }
        if changes:
            self._store.change_account(account_id, **changes)
        return self.account(account_id)

    def set_role(self, account_id: str, role: str) -> Account:
        """Make an account an admin's or a member's, as `change_account` does."""
        return self.change_account(account_id, role=role)

    def set_disabled(self, account_id: str, *, disabled: bool) -> Account:
        """Stop all keys and logins of an account, or let them work again, as `change_account`."""
        return self.change_account(account_id, disabled=disabled)

    def set_password(self, account_id: str, password: str) -> Account:
        """Give an account a password, as `change_account` does."""
        return self.change_account(account_id, password=password)

    def log_in(self, email: str, password: str) -> Account | None:
        """Return the account of an address and its password; None if they do not fit.

        The work is the same whether there is such an account or not.
        """
        account = self._store.account_with_email(email.strip().lower())
        stored = None if account is None else account.password_hash
        if not self._passwords.matches(stored, password):
            return None
        return account if account is not None and account.disabled_at is None else None

    # keys

    def keys(self, account_id: str | None = None) -> list[ApiKey]:
        """Return the keys of an account or of all, oldest first, ended ones too."""
        return self._store.keys(account_id)

    def key(self, key_id: str, *, account_id: str | None = None) -> ApiKey:
        """Return a key; of this account, if one is given.

        Raises:
            NotFoundError: there is none, or it is another account's: the two look alike.
        """
        found = self._store.key(key_id)
        if found is None or (account_id is not None and found.account_id != account_id):
            raise NotFoundError(f"There is no key {key_id!r}.")
        return found

    def create_key(self, account_id: str, name: str, terms: KeyTerms, *, note: str = "") -> NewKey:
        """Make a key for an account.

        Raises:
            NotFoundError: there is no such account.
            InputError: for a bad name, or a scope that the account's role does not have.
        """
        account = self.account(account_id)
        scopes = account.scopes if terms.scopes is None else terms.scopes
        if not scopes <= account.scopes:
            raise InputError(
                f"The scope admin is for accounts with the role admin; {account_id} "
                f"is a {account.role}'s."
            )
        if len(note) > MAX_NOTE_LENGTH:
            raise InputError(f"A note has at most {MAX_NOTE_LENGTH} characters.")
        secret, now = new_key(), self._clock.now()
        digest = digest_of(secret)
        key = ApiKey(
            key_id=key_id_of(digest),
            account_id=account_id,
            digest=digest.hex(),
            prefix=visible_prefix(secret),
            name=_checked_name(name, "key"),
            note=note,
            scopes=scopes,
            given=False,
            created_at=now,
            expires_at=None if terms.lifetime_s is None else now + terms.lifetime_s,
            max_tokens=terms.max_tokens,
            max_seconds=terms.max_seconds,
        )
        self._store.add_key(key)
        return NewKey(key, secret)

    def revoke(self, key_id: str, *, account_id: str | None = None) -> ApiKey:
        """End a key at once, for requests that are on their way too.

        Raises:
            NotFoundError: there is no such key of this account.
            InputError: the operator's settings name it.
        """
        key = self.key(key_id, account_id=account_id)
        if key.given:
            raise InputError(
                f"{key_id} is one of the operator's: take it out of the server's key file, and "
                "start the server again."
            )
        if key.revoked_at is None:
            self._store.change_key(key_id, revoked_at=self._clock.now())
        return self.key(key_id)

    def note(
        self, event: AuditEvent, account_id: str, **details: str | bool | list[str] | None
    ) -> None:
        """Write into the audit log what the operator did, who has no key and no account."""
        self._store.note(event, account_id, at=self._clock.now(), details=details)

    def enter_given(self, given: Iterable[GivenKey]) -> None:
        """Make the operator's keys those that are given now; each is an account of its own."""
        self._store.enter_given(
            [self._given(key, index) for index, key in enumerate(dict.fromkeys(given))],
            now=self._clock.now(),
        )

    def _given(self, key: GivenKey, index: int) -> tuple[Account, ApiKey]:
        now = self._clock.now()
        # The account and its first key have the same id: what was stored before there were
        # accounts belongs to it still.
        name = key_id_of(key.digest)
        account = Account(
            account_id=name,
            name="operator" if index == 0 else name,
            email=None,
            role=ADMIN if index == 0 else MEMBER,
            password_hash=None,
            created_at=now,
        )
        entered = ApiKey(
            key_id=name,
            account_id=name,
            digest=key.digest.hex(),
            prefix=key.prefix,
            name="given to the server",
            note="",
            scopes=SCOPES,
            given=True,
            created_at=now,
        )
        return account, entered

    def _keep_an_admin(self, account: Account) -> None:
        admins = [a for a in self.accounts() if a.role == ADMIN and a.disabled_at is None]
        if [one.account_id for one in admins] == [account.account_id]:
            raise InputError("This is the only admin: make another account an admin first.")

    def _hashed(self, password: str | None, email: str | None) -> str | None:
        if password is None:
            return None
        if email is None:
            raise InputError("A password is for logging in: the account needs an e-mail address.")
        return self._passwords.hash(password)


def terms_within(caller_key: ApiKey | None, wanted: KeyTerms, may: frozenset[str]) -> KeyTerms:
    """Return terms that go no further than those of the key that asks.

    Raises:
        InputError: they would.
    """
    if caller_key is not None and (caller_key.is_capped or caller_key.expires_at is not None):
        raise InputError("A key that expires or has a cap makes no keys: use one without.")
    scopes = may if wanted.scopes is None else wanted.scopes
    if not scopes <= may:
        beyond = ", ".join(sorted(scopes - may))
        raise InputError(f"scopes: the key that asks does not have {beyond} itself.")
    return KeyTerms(
        scopes=scopes,
        lifetime_s=wanted.lifetime_s,
        max_tokens=wanted.max_tokens,
        max_seconds=wanted.max_seconds,
    )


def _checked_name(name: str, of_what: str) -> str:
    name = name.strip()
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InputError(
            f"The name of the {of_what} must have 1 to {MAX_NAME_LENGTH} printable characters."
        )
    return name


def _checked_address(email: str) -> str:
    email = email.strip().lower()
    if _ADDRESS.fullmatch(email) is None or not email.isprintable():
        raise InputError("email: this is no e-mail address.")
    return email


def _checked_role(role: str) -> str:
    if role not in ROLES:
        raise InputError(f"role: {role!r} is none of {', '.join(ROLES)}.")
    return role
