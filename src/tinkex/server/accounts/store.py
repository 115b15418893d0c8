"""Accounts and keys in the server's database.

Owns their queries. Every call is one transaction and blocks. Only `key_with_digest`, `key` and
`account` are made for the event loop: each reads one row by its index, on a connection that stays
open, in some tens of microseconds. So every request can ask, and there is no cache to be stale: a
key that another process revoked is refused by the next request.
"""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, NullPool, bindparam, create_engine, event, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError

from tinkex.errors import ConfigurationError, InputError
from tinkex.server.accounts.caller import ADMIN
from tinkex.server.accounts.records import Account, ApiKey, account_of, key_of
from tinkex.server.accounts.tables import ACCOUNTS, API_KEYS
from tinkex.server.files.faults import watch_database
from tinkex.server.files.layout import DATABASE_NAME
from tinkex.server.files.private import private_file
from tinkex.server.migrations import is_current, migrate
from tinkex.server.records.tables import AUDIT_LOG

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy import Engine

    from tinkex.server.records.audit import AuditEvent

BUSY_TIMEOUT_MS = 10_000


def _compiled(statement: Any) -> str:
    return str(statement.compile(dialect=sqlite.dialect()))


_ACCOUNT = _compiled(select(ACCOUNTS).where(ACCOUNTS.c.account_id == bindparam("id")))
_KEY = _compiled(select(API_KEYS).where(API_KEYS.c.key_id == bindparam("id")))
_KEY_WITH_DIGEST = _compiled(select(API_KEYS).where(API_KEYS.c.digest == bindparam("digest")))


class AccountStore:
    """The accounts and keys of one database.

    Args:
        database: the SQLite file; made, and brought up to date, by `open`.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._engine: Engine | None = None
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()

    @classmethod
    def of_folder(cls, data_dir: Path) -> AccountStore:
        """Open the accounts of a data folder whose server may be running.

        Raises:
            ConfigurationError: no server has used the folder, or one of another version has: the
                tables are not changed under a server that runs.
        """
        database = data_dir / DATABASE_NAME
        if not database.exists():
            raise ConfigurationError(
                f"{data_dir} has no database: start `tinkex serve --data-dir {data_dir}` once, or "
                "give the folder that the server uses"
            )
        if not is_current(database):
            raise ConfigurationError(
                f"{database} was last used by another version of tinkex: start this version's "
                "`tinkex serve` on it once, which brings it up to date"
            )
        store = cls(database)
        store.open()
        return store

    def open(self) -> None:
        """Bring the tables up to date and connect."""
        # It holds hashes of keys and passwords; SQLite gives the files beside it the same mode.
        private_file(self._database)
        migrate(self._database)
        self._engine = create_engine(
            URL.create("sqlite", database=str(self._database)), poolclass=NullPool
        )
        event.listen(self._engine, "connect", _set_pragmas)
        watch_database(self._engine)
        # One connection for every thread, each of which has it for one row at a time.
        self._reader = sqlite3.connect(
            self._database, isolation_level=None, check_same_thread=False
        )
        self._reader.row_factory = sqlite3.Row
        self._reader.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def close(self) -> None:
        """Close the connections."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    # one row, for the event loop

    def key_with_digest(self, digest: bytes) -> ApiKey | None:
        """Return the key whose SHA-256 this is, whether it works or not."""
        row = self._read(_KEY_WITH_DIGEST, digest.hex())
        return None if row is None else key_of(dict(row))

    def key(self, key_id: str) -> ApiKey | None:
        """Return a key by its id."""
        row = self._read(_KEY, key_id)
        return None if row is None else key_of(dict(row))

    def account(self, account_id: str) -> Account | None:
        """Return an account by its id."""
        row = self._read(_ACCOUNT, account_id)
        return None if row is None else account_of(dict(row))

    # accounts

    def account_with_email(self, email: str) -> Account | None:
        """Return the account that somebody logs in to with this address."""
        rows = self._all(select(ACCOUNTS).where(ACCOUNTS.c.email == email))
        return account_of(rows[0]) if rows else None

    def accounts(self) -> list[Account]:
        """Return every account, oldest first."""
        found = self._all(select(ACCOUNTS).order_by(ACCOUNTS.c.created_at, ACCOUNTS.c.account_id))
        return [account_of(row) for row in found]

    def add_account(self, account: Account) -> None:
        """Store a new account.

        Raises:
            InputError: another one has its e-mail address.
        """
        values = {name: getattr(account, name) for name in Account.__slots__}
        try:
            self._write(insert(ACCOUNTS).values(**values))
        except IntegrityError as error:
            raise InputError(
                f"There is an account with the address {account.email!r} already."
            ) from error

    def change_account(self, account_id: str, **changes: Any) -> None:
        """Change columns of an account."""
        self._write(update(ACCOUNTS).where(ACCOUNTS.c.account_id == account_id).values(**changes))

    # keys

    def keys(self, account_id: str | None = None) -> list[ApiKey]:
        """Return the keys of one account or of all, oldest first, ended ones too."""
        statement = select(API_KEYS).order_by(API_KEYS.c.created_at, API_KEYS.c.key_id)
        if account_id is not None:
            statement = statement.where(API_KEYS.c.account_id == account_id)
        return [key_of(row) for row in self._all(statement)]

    def add_key(self, key: ApiKey) -> None:
        """Store a new key."""
        self._write(insert(API_KEYS).values(**_key_values(key)))

    def change_key(self, key_id: str, **changes: Any) -> None:
        """Change columns of a key."""
        self._write(update(API_KEYS).where(API_KEYS.c.key_id == key_id).values(**changes))

    def enter_given(self, given: Sequence[tuple[Account, ApiKey]], *, now: float) -> None:
        """Make the operator's keys those that are given now, each with its account.

        What an account was changed to stays; but the first is the operator's own and always an
        admin, so that nobody is locked out.
        """
        entered = [key.key_id for _, key in given]
        with self._connected().begin() as connection:
            for index, (account, key) in enumerate(given):
                values = {name: getattr(account, name) for name in Account.__slots__}
                connection.execute(upsert(ACCOUNTS).values(**values).on_conflict_do_nothing())
                if index == 0:
                    mine = ACCOUNTS.c.account_id == account.account_id
                    connection.execute(
                        update(ACCOUNTS).where(mine).values(role=ADMIN, disabled_at=None)
                    )
                statement = upsert(API_KEYS).values(**_key_values(key))
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["key_id"],
                        set_={"given": True, "revoked_at": None, "scopes": key_scopes(key)},
                    )
                )
            gone = API_KEYS.c.given & API_KEYS.c.key_id.not_in(entered)
            connection.execute(update(API_KEYS).where(gone).values(given=False, revoked_at=now))

    def note(self, event: AuditEvent, account_id: str, *, at: float, details: Any) -> None:
        """Write into the audit log what the operator did with an account, on the machine itself."""
        self._write(
            insert(AUDIT_LOG).values(
                at=at,
                owner=account_id,
                key_id=None,
                resource=event.resource,
                event=event.event,
                details={"account_id": account_id, "by": "operator", **details},
            )
        )

    # plumbing

    def _read(self, statement: str, value: str) -> sqlite3.Row | None:
        assert self._reader is not None, "open() comes first"
        with self._reading:
            row: sqlite3.Row | None = self._reader.execute(statement, (value,)).fetchone()
            return row

    def _connected(self) -> Engine:
        assert self._engine is not None, "open() comes first"
        return self._engine

    def _all(self, statement: Any) -> list[dict[str, Any]]:
        with self._connected().connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def _write(self, statement: Any) -> None:
        with self._connected().begin() as connection:
            connection.execute(statement)


def key_scopes(key: ApiKey) -> str:
    """Write a key's scopes as they are stored."""
    return " ".join(sorted(key.scopes))


def _key_values(key: ApiKey) -> dict[str, Any]:
    values = {name: getattr(key, name) for name in ApiKey.__slots__}
    return {**values, "scopes": key_scopes(key)}


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
