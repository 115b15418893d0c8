"""Brings a database to this version's tables, with Alembic, at the start of the server.

Owns the way from an old database to a new one. A database that is up to date costs one query: only
a change loads Alembic.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "0011"
"""The newest revision in `versions/`."""


def migrate(database: Path) -> None:
    """Create or update the tables of `database`. Blocks.

    Raises:
        ConfigurationError: when a newer version of tinkex wrote it, or it is no database.
    """
    found = _found(database)
    if found != HEAD:
        _upgrade(database, found)


def is_current(database: Path) -> bool:
    """Whether a database has this version's tables. Changes nothing.

    Raises:
        ConfigurationError: it is no database.
    """
    return _found(database) == HEAD


def _found(database: Path) -> str | None:
    try:
        return _revision(database)
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(
            [f"{database} is not a readable SQLite database ({error}): move it away to start anew"]
        ) from error


def _revision(database: Path) -> str | None:
    if not database.exists():
        return None
    with closing(sqlite3.connect(database)) as connection:
        tables = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"
        if connection.execute(tables).fetchone() is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])


def _upgrade(database: Path, found: str | None) -> None:
    # Loaded only here: Alembic costs a quarter of a second that a start without changes saves.
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.environment import EnvironmentContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from sqlalchemy import URL, create_engine, event  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "tinkex.server:migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise ConfigurationError(
            [f"{database} was written by a newer tinkex (revision {found}): update this one"]
        )
    engine = create_engine(URL.create("sqlite", database=str(database)))
    # Python's sqlite3 begins no transaction by itself before a table is made: all or nothing.
    event.listen(engine, "connect", lambda raw, _record: setattr(raw, "isolation_level", None))
    event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    environment = EnvironmentContext(
        config,
        scripts,
        fn=lambda revision, _context: scripts._upgrade_revs("head", revision),  # noqa: SLF001 - what alembic.command.upgrade itself passes
    )
    try:
        with environment, engine.begin() as connection:
            environment.configure(connection=connection, transactional_ddl=True)
            environment.run_migrations()
    finally:
        engine.dispose()
