"""Every file of a data folder that its database names.

Owns the one list of them: what `tinkex check` verifies and what `tinkex backup` copies is what
`named_files` says. A table that names files of its own gets a function here, in `_SOURCES`.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tinkex.server.files.layout import (
    CHECKPOINTS_NAME,
    DATABASE_FILES,
    LOCK_NAME,
    REPLACED_PREFIX,
    SNAPSHOTS_NAME,
)
from tinkex.server.files.records import (
    described_problems,
    file_names,
    folder_problems,
    read_records,
)
from tinkex.types.tinker_path import check_part, format_tinker_path

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tinkex.server.files.records import FileRecord


@dataclass(frozen=True, slots=True)
class NamedFolder:
    """A folder that one row names, and what is to be in it."""

    path: PurePosixPath
    """Below the data folder."""
    title: str
    """What it is to a user, such as a tinker path."""
    kind: str
    """`checkpoint` or `snapshot`."""
    files: dict[str, FileRecord] | None
    """Its files; None where the row does not say, and the folder's own manifest counts."""
    fleeting: bool = False
    """Whether the folder may go a moment before its row does."""


def named_folders(connection: sqlite3.Connection) -> list[NamedFolder]:
    """List every folder that a database names.

    Raises:
        sqlite3.Error: the database cannot be read.
        ValueError: a row is no such row.
    """
    return [folder for source in _SOURCES for folder in source(connection)]


def folder_files(data_dir: Path, folder: NamedFolder) -> dict[PurePosixPath, FileRecord | None]:
    """List the files of one folder, below the data folder, with their records where known."""
    if folder.files is not None:
        return {folder.path / name: record for name, record in folder.files.items()}
    return {folder.path / name: None for name in file_names(data_dir / folder.path)}


def single_files(data_dir: Path) -> list[str]:
    """Name the files that lie in a data folder itself: secrets, mostly; no row names them."""
    others = {*DATABASE_FILES, LOCK_NAME}
    found = [entry.name for entry in data_dir.iterdir() if entry.is_file()]
    return sorted(name for name in found if name not in others)


def unnamed_folders(data_dir: Path, named: list[NamedFolder]) -> list[PurePosixPath]:
    """List the folders of a data folder that lie where named ones do and that no row names."""
    known = {folder.path for folder in named}
    found: list[PurePosixPath] = []
    for pattern in FOLDER_PATTERNS:
        for path in _matching(data_dir, pattern):
            below = PurePosixPath(path.relative_to(data_dir).as_posix())
            if below not in known:
                found.append(below)
    return found


def _matching(data_dir: Path, pattern: str) -> list[Path]:
    """List what matches now: a folder that a live server removes meanwhile makes `glob` fail."""
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError):
            return sorted(data_dir.glob(pattern))
    return sorted(data_dir.glob(pattern))


def being_replaced(folder: Path) -> bool:
    """Whether a save is about to replace a folder, or was killed while it did."""
    return (folder.parent / f"{REPLACED_PREFIX}{folder.name}").is_dir()


_LOOKS = 20
FOLDER_PATTERNS = (
    f"{CHECKPOINTS_NAME}/*/*/*",
    f"{SNAPSHOTS_NAME}/*:train:*/*",
    f"{SNAPSHOTS_NAME}/*:sample:*",
)
"""Where named folders lie."""


def named_problems(data_dir: Path, folder: NamedFolder, *, hashes: bool) -> list[str]:
    """Say what is wrong with a folder that the database names; nothing when all is right.

    Args:
        data_dir: the data folder, or a copy of it.
        folder: which one.
        hashes: read every file too; without, names and sizes alone are compared.
    """
    place = data_dir / folder.path
    if being_replaced(place):  # the next start sees by the database which of the two is right
        before = place.parent / f"{REPLACED_PREFIX}{place.name}"
        if folder.files is None or not folder_problems(before, folder.files, hashes=hashes):
            return []
    if not place.is_dir():
        return ["its folder is missing"]
    if folder.files is None:
        return described_problems(place, hashes=hashes)
    return folder_problems(place, folder.files, hashes=hashes)


def _checkpoints(connection: sqlite3.Connection) -> Iterator[NamedFolder]:
    columns = {row["name"] for row in connection.execute("PRAGMA table_info(checkpoints)")}
    files = "files" if "files" in columns else "NULL AS files"
    if not columns:
        return
    query = f"SELECT run_id, kind, name, {files} FROM checkpoints ORDER BY checkpoint_number"  # noqa: S608 - two fixed words
    for row in connection.execute(query):
        run_id, kind, name = (_checked(row[part]) for part in ("run_id", "kind", "name"))
        recorded = None if row["files"] is None else json.loads(row["files"])
        yield NamedFolder(
            PurePosixPath(CHECKPOINTS_NAME, run_id, kind, name),
            format_tinker_path(run_id, kind, name),
            "checkpoint",
            None if recorded is None else read_records(recorded),
        )


def _run_snapshots(connection: sqlite3.Connection) -> Iterator[NamedFolder]:
    if not _has_table(connection, "run_snapshots"):
        return
    query = "SELECT model_id, generation FROM run_snapshots ORDER BY model_id, generation"
    for row in connection.execute(query):
        path = PurePosixPath(SNAPSHOTS_NAME, _checked(row["model_id"]), str(int(row["generation"])))
        title = f"snapshot {row['generation']} of run {row['model_id']}"
        yield NamedFolder(path, title, "snapshot", None)


def _sampler_snapshots(connection: sqlite3.Connection) -> Iterator[NamedFolder]:
    if not _has_table(connection, "run_snapshots"):
        return  # as old as that: samplers did not outlive the server
    # a run's samplers that are `inflight` share the weights of the newest one
    query = (
        "SELECT sampler_id FROM samplers JOIN sessions USING (session_id) LEFT JOIN"
        " (SELECT run_id AS of_run, max(created_at) AS newest FROM samplers WHERE inflight"
        " GROUP BY run_id) ON of_run = samplers.run_id"
        " WHERE status = 'active' AND model_path IS NULL AND run_id IS NOT NULL"
        " AND (NOT inflight OR samplers.created_at = newest)"
    )
    for row in connection.execute(query):
        sampler_id = _checked(row["sampler_id"])
        path = PurePosixPath(SNAPSHOTS_NAME, sampler_id)
        yield NamedFolder(path, f"sampler {sampler_id}", "snapshot", None, fleeting=True)


def _has_table(connection: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(query, (name,)).fetchone() is not None


def _checked(text: str) -> str:
    """Let no name of a row lead out of the data folder."""
    check_part(text, "name in the database")
    return text


_SOURCES: tuple[Callable[[sqlite3.Connection], Iterator[NamedFolder]], ...] = (
    _checkpoints,
    _run_snapshots,
    _sampler_snapshots,
)
