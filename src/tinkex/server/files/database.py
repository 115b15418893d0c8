"""The database as a file: whole, of a version that this tinkex knows, and copied while in use.

Owns what SQLite offers for that (integrity_check, foreign_key_check, the online backup), through
connections that change nothing. Which rows there are is `store`'s.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError
from tinkex.server.files.layout import SEAL_SUFFIX
from tinkex.server.files.private import private_file
from tinkex.server.files.records import sha256_of
from tinkex.server.migrations import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_PROBLEMS = 20
BUSY_TIMEOUT_S = 10.0


@contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a database to read, in use by a server or not.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def database_problems(database: Path) -> list[str]:
    """Say what is wrong with a database: nothing when it is whole. Blocks, and reads all of it."""
    if not database.is_file():
        return [f"there is no {database.name}"]
    if broken_seal(database):
        return [_ROTTEN]
    try:
        with reading(database) as connection:
            return _damage(connection) or _schema_problems(connection)
    except sqlite3.Error as error:
        return [str(error)]


def revision_of(connection: sqlite3.Connection) -> str | None:
    """Return the version of the tables; None for a database that was never served."""
    named = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
    if connection.execute(named).fetchone() is None:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def check_database(database: Path) -> None:
    """Refuse a damaged database before anything is served from it. Blocks.

    Raises:
        ConfigurationError: it is damaged; the message says how to get it back.
    """
    if not database.is_file() or not database.stat().st_size:
        return
    try:
        _roll_back(database)
        with reading(database) as connection:
            problems = _damage(connection)
    except sqlite3.Error as error:
        problems = [str(error)]
    if not problems and broken_seal(database):
        problems = [_ROTTEN]
    if problems:
        raise ConfigurationError(
            f"the database {database} is damaged ({problems[0][:200]}): nothing was served from "
            "it. Move its folder away and restore a backup there with `tinkex restore BACKUP "
            "--data-dir FOLDER`; `tinkex check` lists what is damaged"
        )


def _roll_back(database: Path) -> None:
    """Let SQLite take back what a process killed in its first start, or a migration, had begun.

    Until then a database with such a journal beside it cannot be read by who may not write.
    """
    if database.with_name(f"{database.name}-journal").exists():
        with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_S)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def seal_database(database: Path) -> None:
    """Note the sum of a database that nobody uses any more, for the next start. Blocks.

    SQLite's own check finds broken structure, not a changed byte in a row's text; this finds any.

    Raises:
        OSError: the disk refused.
    """
    seal = _seal_of(database)
    seal.unlink(missing_ok=True)
    log = database.with_name(f"{database.name}-wal")
    if log.exists() and log.stat().st_size:
        return  # somebody uses it still
    found = database.stat()
    text = json.dumps([found.st_size, found.st_mtime_ns, sha256_of(database)])
    private_file(seal)
    seal.write_text(text, encoding="utf-8")


def broken_seal(database: Path) -> bool:
    """Whether a database changed since its server stopped though no program wrote to it. Blocks.

    One that a program wrote to has another time of change: then the seal says nothing.
    """
    try:
        size, modified, sha256 = json.loads(_seal_of(database).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False  # a server that uses it, or one that was killed
    log = database.with_name(f"{database.name}-wal")
    found = database.stat()
    same = (found.st_size, found.st_mtime_ns) == (size, modified)
    unwritten = not log.exists() or not log.stat().st_size
    return same and unwritten and sha256_of(database) != sha256


def break_seal(database: Path) -> None:
    """Forget the sum: from now on a server writes to the database. Blocks."""
    _seal_of(database).unlink(missing_ok=True)


def copy_database(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, in use or not; the copy is one file. Blocks.

    Raises:
        sqlite3.Error: it cannot be read, or the copy not be written.
    """
    with reading(source) as origin, closing(sqlite3.connect(target)) as copy:
        origin.backup(copy)  # in one step: a writer meanwhile cannot make it begin again
        copy.execute("PRAGMA journal_mode = DELETE")


_ROTTEN = "it changed since its server stopped, though nothing wrote to it"


def _seal_of(database: Path) -> Path:
    return database.with_name(f"{database.name}{SEAL_SUFFIX}")


def _damage(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})")
    return [str(row[0]) for row in rows if row[0] != "ok"]


def _schema_problems(connection: sqlite3.Connection) -> list[str]:
    found = revision_of(connection)
    if found is not None and found > HEAD:
        return [f"a newer tinkex wrote it (revision {found}, this one knows {HEAD}): update tinkex"]
    return [
        f"row {row[1]} of {row[0]} names a row of {row[2]} that is not there"
        for row in connection.execute("PRAGMA foreign_key_check").fetchmany(MAX_PROBLEMS)
    ]
