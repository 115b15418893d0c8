"""A disk that refuses, and data that is not as it was written, as typed errors.

Owns the words and which error of the machine means what. Nothing here repairs anything.
"""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import event

from tinkex.errors import DamagedDataError, EngineError, StorageError, TinkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine, ExceptionContext

RETRY_MS = 30_000.0
"""After which another attempt makes sense: somebody has to make room first."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SQLITE_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQLITE_REFUSED = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
}


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn a disk that refuses into a `StorageError` that names what was not written.

    Raises:
        StorageError: the disk refused.
    """
    try:
        yield
    except OSError as error:
        raise disk_refused(what, error) from error
    except EngineError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise disk_refused(what, error.__cause__) from error


def disk_refused(what: str, error: OSError) -> StorageError:
    """Say that the disk refused to take something, and what to do."""
    if error.errno in _FULL:
        return StorageError(_full(what), retry_after_ms=RETRY_MS)
    return StorageError(
        f"The server's disk refused {what} ({error.strerror or error}); nothing of it was kept. "
        "Whoever runs the server has to look at its data folder; then send it again.",
        retry_after_ms=RETRY_MS,
    )


def damaged_checkpoint(path: str, problem: str) -> DamagedDataError:
    """Say that a checkpoint is not as it was saved, and what to do."""
    return DamagedDataError(
        f"Checkpoint {path} is damaged on the server's disk: {problem}. It is not loaded. Use "
        "another checkpoint, or have whoever runs the server restore it from a backup "
        "(`tinkex check` lists all that is damaged)."
    )


def watch_database(engine: Engine) -> None:
    """Have every query through `engine` fail with our errors where the disk is at fault."""
    event.listen(engine, "handle_error", _translate)


def database_fault(error: BaseException | None) -> TinkerError | None:
    """Return our error for one of SQLite's, or None where the disk is not at fault."""
    if not isinstance(error, sqlite3.Error):
        return None
    # the low byte is the kind of error, the rest says more of it
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind in _SQLITE_DAMAGED:
        return DamagedDataError(
            "The server's database is damaged on its disk, and this was not done. Whoever runs the "
            "server has to stop it, look with `tinkex check`, and restore a backup with "
            "`tinkex restore`."
        )
    if kind == sqlite3.SQLITE_FULL:
        return StorageError(_full("a change of the database"), retry_after_ms=RETRY_MS)
    if kind in _SQLITE_REFUSED:
        return StorageError(
            f"The server's database cannot be written ({error}); nothing was changed. Whoever runs "
            "the server has to look at its data folder; then send it again.",
            retry_after_ms=RETRY_MS,
        )
    return None


def _translate(context: ExceptionContext) -> None:
    ours = database_fault(context.original_exception)
    if ours is not None:
        raise ours


def _full(what: str) -> str:
    return (
        f"The server's disk is full: {what} could not be written, and nothing of it was kept. "
        "Delete checkpoints that are not needed, or have whoever runs the server make room; then "
        "send it again."
    )
