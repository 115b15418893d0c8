"""Whether a data folder is as it should be: the database, every file it names, who may read it.

Owns the report of `tinkex check`. It changes nothing, and may look at a folder that a server uses:
what is found wrong is looked at again in a fresh state of the database before it is reported.

A folder that no row names is no finding while a server runs: its start erased what was left over,
and what it writes or erases since has no row for as long as that takes.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkex.errors import InputError
from tinkex.server.files.database import database_problems, reading, revision_of
from tinkex.server.files.inventory import (
    NamedFolder,
    folder_files,
    named_folders,
    named_problems,
    single_files,
    unnamed_folders,
)
from tinkex.server.files.layout import DATABASE_FILES, DATABASE_NAME, PINNED_PREFIX
from tinkex.server.files.lock import in_use
from tinkex.server.files.private import open_to_others

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    kind: str
    """`database`, `checkpoint`, `snapshot`, `orphan` or `permissions`."""
    where: str
    """A tinker path, or a path below the data folder."""
    problem: str
    """What is wrong, and what to do where that is not the same for all."""


@dataclass(slots=True)
class Report:
    """What a check found."""

    data_dir: str
    revision: str | None = None
    """Version of the database's tables."""
    folders: int = 0
    """Checkpoints, and other folders that the database names."""
    files: int = 0
    """Files in them."""
    size_bytes: int = 0
    """Bytes of those files."""
    unrecorded: int = 0
    """Checkpoints of a tinkex that kept no record of files: their own manifests were believed."""
    errors: list[Finding] = field(default_factory=list)
    """What is lost or would be refused."""
    warnings: list[Finding] = field(default_factory=list)
    """What is untidy, and harms nothing that is saved."""

    @property
    def ok(self) -> bool:
        """Whether nothing is lost."""
        return not self.errors

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        report: dict[str, Any] = {"ok": self.ok}
        report |= {name: getattr(self, name) for name in self.__slots__}
        for name in ("errors", "warnings"):
            report[name] = [
                {"kind": one.kind, "where": one.where, "problem": one.problem}
                for one in report[name]
            ]
        return report


def check_data_dir(data_dir: Path, *, hashes: bool = True) -> Report:
    """Check a data folder. Blocks; reads every file of it.

    Args:
        data_dir: the folder; a server may use it.
        hashes: read the files and compare their SHA-256; without, names and sizes alone.

    Raises:
        InputError: it is no data folder of a server.
    """
    database = data_dir / DATABASE_NAME
    if not database.is_file():
        raise InputError(f"{data_dir} is no data folder of tinkex: it has no {DATABASE_NAME}.")
    report = Report(str(data_dir))
    problems = database_problems(database)
    report.errors += [Finding("database", DATABASE_NAME, problem) for problem in problems]
    if not problems:
        try:
            _check_folders(data_dir, report, hashes=hashes)
        except (sqlite3.Error, ValueError) as error:
            report.errors.append(Finding("database", DATABASE_NAME, str(error)))
    report.warnings += _permissions(data_dir)
    return report


def _check_folders(data_dir: Path, report: Report, *, hashes: bool) -> None:
    folders = _read_folders(data_dir, report)
    suspects = {
        folder.path: problems
        for folder in folders
        if (problems := named_problems(data_dir, folder, hashes=hashes))
    }
    orphans = unnamed_folders(data_dir, folders)
    if suspects or orphans:  # a server may have saved or deleted it meanwhile: look again
        folders = _read_folders(data_dir, report)
        suspects = {
            folder.path: problems
            for folder in folders
            if folder.path in suspects
            if (problems := named_problems(data_dir, folder, hashes=hashes))
        }
        orphans = [path for path in unnamed_folders(data_dir, folders) if path in set(orphans)]
    if orphans and in_use(data_dir):
        orphans = []
    for folder in folders:
        _count(data_dir, folder, report)
        report.errors += [
            Finding(folder.kind, folder.title, problem) for problem in suspects.get(folder.path, ())
        ]
    report.warnings += [
        Finding("orphan", str(path), "no row names it: the next start of the server deletes it")
        for path in orphans
    ]
    report.warnings += [
        Finding("orphan", path.name, "a backup is running, or one was killed: then delete it")
        for path in sorted(data_dir.glob(f"{PINNED_PREFIX}*"))
    ]


def _read_folders(data_dir: Path, report: Report) -> list[NamedFolder]:
    with reading(data_dir / DATABASE_NAME) as connection:
        report.revision = revision_of(connection)
        return named_folders(connection)


def _count(data_dir: Path, folder: NamedFolder, report: Report) -> None:
    report.folders += 1
    report.unrecorded += folder.files is None and folder.kind == "checkpoint"
    for path, record in folder_files(data_dir, folder).items():
        report.files += 1
        try:
            size = (data_dir / path).stat().st_size if record is None else record.size
        except FileNotFoundError:  # a snapshot that went meanwhile
            size = 0
        report.size_bytes += size


def _permissions(data_dir: Path) -> list[Finding]:
    """Say what others may read. Below a private folder modes do not matter, so it comes first."""
    if not open_to_others(data_dir):
        return []
    names = [*DATABASE_FILES, *single_files(data_dir)]
    exposed = [
        name for name in names if (data_dir / name).exists() and open_to_others(data_dir / name)
    ]
    what = f", and may read {', '.join(exposed)}" if exposed else ""
    return [
        Finding("permissions", ".", f"others may enter the folder{what}: chmod -R go= {data_dir}")
    ]
