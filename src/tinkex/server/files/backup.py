"""Copies of a data folder: taken while a server uses it, and put back.

Owns what is in a backup and that it is whole or not there. A backup is a data folder with a
manifest, `backup.json`, of every file's size and SHA-256. The database is copied first, at one
moment; then every file that this copy names. Files of checkpoints never change in place, so a file
that is there and has its recorded sum is the one that the copied database means; when one is gone,
its checkpoint was deleted or saved anew meanwhile, and the whole cut is taken again.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tinkex._files import flush, flush_tree
from tinkex._version import __version__
from tinkex.errors import DamagedDataError, InputError, StorageError
from tinkex.server.files.check import check_data_dir
from tinkex.server.files.database import copy_database, database_problems, reading, revision_of
from tinkex.server.files.faults import disk_refused
from tinkex.server.files.inventory import (
    NamedFolder,
    being_replaced,
    folder_files,
    named_folders,
    named_problems,
    single_files,
)
from tinkex.server.files.layout import DATABASE_NAME, PINNED_PREFIX
from tinkex.server.files.private import make_private, private_folder
from tinkex.server.files.records import FileRecord, file_names, folder_problems, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tinkex._clock import Clock

MANIFEST_NAME = "backup.json"
FORMAT_VERSION = 1
MAX_CUTS = 5


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that is there, or a folder that was restored from one."""

    path: str
    taken_at: str
    """When its database was copied, ISO 8601 in UTC."""
    folders: int
    """Checkpoints, and other folders that the database names."""
    files: int
    """Files, with the database and the secrets."""
    size_bytes: int
    """Bytes of them."""
    cuts: int = 1
    """How often the database was copied until every file that it names was there."""


def back_up(
    data_dir: Path,
    destination: Path,
    *,
    clock: Clock,
    link: bool = False,
    after_cut: Callable[[], None] = lambda: None,
) -> Backup:
    """Copy a data folder that a server may be using. Blocks.

    Args:
        data_dir: the folder.
        destination: where to; it must not be there. It appears when it is complete.
        clock: tells when it was taken.
        link: share the files of checkpoints with the data folder by hard links, where both lie on
            one disk: quick and small, but no help when that disk fails.
        after_cut: called after each copy of the database.

    Raises:
        InputError: there is no data folder, something in the destination's place, or it lies in the
            data folder.
        DamagedDataError: the database or a checkpoint is damaged.
        StorageError: the disk refused, or the server deleted checkpoints faster than they could be
            copied.
    """
    database = data_dir / DATABASE_NAME
    if not database.is_file():
        raise InputError(f"{data_dir} is no data folder of tinkex: it has no {DATABASE_NAME}.")
    if destination.exists():
        raise InputError(f"{destination} is there already: give a new folder for each backup.")
    _refuse_within(destination, data_dir, "the data folder, which servers clear")
    with _disk(f"the backup {destination}"), _beside(destination) as folder:
        cuts, lost = 0, "nothing yet"
        while lost:
            if cuts == MAX_CUTS:
                raise StorageError(
                    f"The backup was given up: {lost} went while it was copied, as others did in "
                    f"{MAX_CUTS - 1} attempts before. Take it when fewer checkpoints are deleted."
                )
            cuts += 1
            taken_at = datetime.fromtimestamp(clock.now(), UTC).isoformat()
            _copy_whole_database(database, folder / DATABASE_NAME)
            after_cut()
            lost = _copy_named(data_dir, folder, link=link)
        backup = _finish(data_dir, folder, destination, taken_at, cuts)
        folder.rename(destination)
        flush(destination.parent)
    return backup


def restore(source: Path, data_dir: Path) -> Backup:
    """Put a backup back as a data folder that a server can be started on. Blocks.

    Args:
        source: the backup; it stays as it is.
        data_dir: where to: a folder that is not there, or is empty.

    Raises:
        InputError: `source` is no backup, or `data_dir` is not empty or lies in it.
        DamagedDataError: the backup is damaged; nothing was restored.
        StorageError: the disk refused.
    """
    _refuse_within(data_dir, source, "the backup, which would not be what it was any more")
    manifest = verify(source)
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        raise InputError(
            f"{data_dir} is not empty, and nothing in it was touched: stop the server that uses "
            "it, move the folder away, and restore again."
        )
    with _disk(f"the data folder {data_dir}"), _beside(data_dir) as folder:
        for name in manifest["files"]:
            _place(source / name, folder / name)
        problems = folder_problems(folder, _records(manifest), hashes=True)
        report = check_data_dir(folder, hashes=False)
        problems += [one.problem for one in report.errors]
        if problems:
            raise DamagedDataError(f"What was restored is not what was copied: {problems[0]}.")
        make_private(folder)
        flush_tree(folder)
        if data_dir.exists():
            data_dir.rmdir()
        folder.rename(data_dir)
        flush(data_dir.parent)
    return _described(data_dir, manifest)


def verify(source: Path) -> dict[str, Any]:
    """Hold a backup against its manifest, and return that. Blocks; reads all of it.

    Raises:
        InputError: it is no backup, or of a newer tinkex.
        DamagedDataError: it is damaged.
    """
    manifest = _read_manifest(source)
    recorded = _records(manifest)
    present = set(file_names(source)) - {MANIFEST_NAME}
    problems = folder_problems(source, recorded, hashes=True, present=present)
    problems = problems or database_problems(source / DATABASE_NAME)
    if problems:
        raise DamagedDataError(
            f"The backup {source} is damaged, and nothing was restored: {'; '.join(problems[:5])}. "
            "Use another backup."
        )
    return manifest


def _refuse_within(folder: Path, other: Path, what: str) -> None:
    if folder.resolve().is_relative_to(other.resolve()):
        raise InputError(f"{folder} lies in {what}: give a folder elsewhere.")


def _copy_whole_database(database: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)
    try:
        copy_database(database, copy)
    except sqlite3.OperationalError as error:
        raise StorageError(f"The database cannot be copied: {error}.") from error
    except sqlite3.Error as error:
        raise DamagedDataError(_damaged("the database", str(error))) from error
    problems = database_problems(copy)
    if problems:
        raise DamagedDataError(_damaged("the database", problems[0]))


def _copy_named(data_dir: Path, folder: Path, *, link: bool) -> str:
    """Copy all that the copied database names; return the title of what is gone, if anything is."""
    with reading(folder / DATABASE_NAME) as connection:
        named = named_folders(connection)
    with _pinned(data_dir, named) as origin:
        wanted = {one.path: folder_files(origin, one) for one in named}
        _drop_others(folder, {path for files in wanted.values() for path in files})
        for one in named:
            for path, record in wanted[one.path].items():
                _copy_anew(origin / path, folder / path, record, link=link)
            if named_problems(folder, one, hashes=True):
                _check_damaged(data_dir, one)
                return one.title
    return ""


@contextmanager
def _pinned(data_dir: Path, named: Sequence[NamedFolder]) -> Iterator[Path]:
    """Hold every named file by a link, so that none goes while the others are copied.

    Gives a folder laid out as the data folder; the data folder itself on a disk without links.
    """
    pins = data_dir / f"{PINNED_PREFIX}{secrets.token_hex(8)}"
    try:
        private_folder(pins)
        try:
            for one in named:
                for path in folder_files(data_dir, one):
                    (pins / path).parent.mkdir(parents=True, exist_ok=True)
                    with suppress(FileNotFoundError):
                        os.link(data_dir / path, pins / path)
        except OSError:
            yield data_dir
            return
        yield pins
    finally:
        shutil.rmtree(pins, ignore_errors=True)


def _copy_anew(source: Path, target: Path, record: FileRecord | None, *, link: bool) -> None:
    """Copy one file, unless an earlier cut did or it is gone."""
    if target.exists() and record is not None and record_of(target) == record:
        return
    target.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        _place(source, target, link=link)


def _check_damaged(data_dir: Path, folder: NamedFolder) -> None:
    """Tell what is damaged from what the server deleted or saved anew meanwhile.

    Raises:
        DamagedDataError: the live database means the very same, and it is not there as it was.
    """
    if folder.fleeting or being_replaced(data_dir / folder.path):
        return
    problems = named_problems(data_dir, folder, hashes=True)
    with reading(data_dir / DATABASE_NAME) as connection:
        still_named = folder in named_folders(connection)
    if problems and still_named and not being_replaced(data_dir / folder.path):
        raise DamagedDataError(_damaged(folder.title, problems[0]))


def _drop_others(folder: Path, wanted: set[PurePosixPath]) -> None:
    """Remove what an earlier cut copied and this one does not name."""
    for name in file_names(folder):
        if name != DATABASE_NAME and PurePosixPath(name) not in wanted:
            (folder / name).unlink()


def _finish(data_dir: Path, folder: Path, destination: Path, taken_at: str, cuts: int) -> Backup:
    """Add the secrets and the manifest, and have the disk keep all of it."""
    for name in single_files(data_dir):
        _place(data_dir / name, folder / name)
    with reading(folder / DATABASE_NAME) as connection:
        revision, folders = revision_of(connection), len(named_folders(connection))
    files = {name: record_of(folder / name) for name in file_names(folder)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "tinkex": __version__,
        "taken_at": taken_at,
        "revision": revision,
        "folders": folders,
        "files": {name: [record.size, record.sha256] for name, record in files.items()},
    }
    text = json.dumps(manifest, indent=1) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    make_private(folder)
    flush_tree(folder)
    return _described(destination, manifest, cuts=cuts)


def _read_manifest(source: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST_NAME).read_text(encoding="utf-8"))
        version = manifest["format_version"]
        _records(manifest)
    except OSError as error:
        raise InputError(
            f"{source} is no backup: it has no readable {MANIFEST_NAME}, as `tinkex backup` writes."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedDataError(f"The backup {source} has a damaged {MANIFEST_NAME}.") from error
    if version > FORMAT_VERSION:
        raise InputError(f"{source} was taken by a newer tinkex ({manifest['tinkex']}): update it.")
    return manifest


def _records(manifest: Mapping[str, Any]) -> dict[str, FileRecord]:
    """Read the manifest's files; none may lie elsewhere than in the folder."""
    records = {}
    for name, (size, digest) in manifest["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise DamagedDataError(f"A backup's {MANIFEST_NAME} names a file outside of it.")
        records[name] = FileRecord(int(size), str(digest))
    return records


def _described(path: Path, manifest: Mapping[str, Any], *, cuts: int = 1) -> Backup:
    records = _records(manifest)
    size = sum(record.size for record in records.values())
    taken_at, folders = manifest["taken_at"], manifest["folders"]
    return Backup(str(path), taken_at, folders, len(records), size, cuts)


def _place(source: Path, target: Path, *, link: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, target)
        return
    shutil.copyfile(source, target)


@contextmanager
def _beside(destination: Path) -> Iterator[Path]:
    """Give a folder beside the destination; what is left of it at the end is removed."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    folder = destination.parent / f".{destination.name}.{secrets.token_hex(8)}"
    private_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_refused(what, error) from error


def _damaged(what: str, problem: str) -> str:
    return (
        f"No backup was taken, as {what} is damaged: {problem}. Look with `tinkex check`, delete "
        "what is lost, and take the backup again."
    )
