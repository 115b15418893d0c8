"""Checkpoint folders on disk.

Owns where a checkpoint lies, that no name leads out of the data folder, and that a checkpoint is
there whole or not at all. Knows nothing of what is in one, nor of the database.

Layout: `<root>/<run id>/<kind>/<name>/`, the kinds being `KINDS`. A save is written beside and
renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.errors import InputError
from tinkex.types.tinker_path import check_part, format_tinker_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KINDS = ("weights", "sampler_weights", "external_weights")
_STAGING = ".staging-"
_REPLACED = ".replaced-"


@dataclass(frozen=True, slots=True)
class CheckpointKey:
    """Names one checkpoint."""

    run_id: str
    kind: str
    """`weights`, `sampler_weights` or `external_weights`."""
    name: str

    @property
    def path(self) -> str:
        """Its tinker path."""
        return format_tinker_path(self.run_id, self.kind, self.name)

    @property
    def checkpoint_id(self) -> str:
        """Its id within its run."""
        return f"{self.kind}/{self.name}"


class Blobs:
    """The checkpoint folders under one root. Its methods block; each is safe from any thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, key: CheckpointKey) -> Path:
        """Return where a checkpoint lies, whether or not it exists.

        Raises:
            InputError: for a name that leads elsewhere.
        """
        check_part(key.name, "checkpoint name")
        check_part(key.run_id, "training run id")
        if key.kind not in KINDS:
            raise InputError(f"Checkpoint kind {key.kind!r} is none of {', '.join(KINDS)}.")
        return self._root / key.run_id / key.kind / key.name

    def exists(self, key: CheckpointKey) -> bool:
        """Whether the checkpoint is there."""
        return self.folder(key).is_dir()

    @contextmanager
    def write(self, key: CheckpointKey, *, overwrite: bool) -> Iterator[Path]:
        """Give a path to write a checkpoint folder to; at the end it takes its place, whole.

        On an exception nothing is left and what was there before stays.

        Raises:
            InputError: when it exists and `overwrite` is false.
        """
        final = self.folder(key)
        if final.exists() and not overwrite:
            raise InputError(
                f"Checkpoint {key.path} exists already. Choose another name, or overwrite=True."
            )
        parent = final.parent
        parent.mkdir(parents=True, exist_ok=True)
        staging = parent / f"{_STAGING}{secrets.token_hex(8)}"
        try:
            yield staging
            self._replace(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def size(self, key: CheckpointKey) -> int:
        """Return the bytes of a checkpoint's files."""
        return sum(entry.stat().st_size for entry in self.folder(key).rglob("*") if entry.is_file())

    def files(self, key: CheckpointKey) -> list[str]:
        """Return the files of a checkpoint, relative to its folder, in order; none without it."""
        folder = self.folder(key)
        found = (entry for entry in folder.rglob("*") if entry.is_file())
        return sorted(entry.relative_to(folder).as_posix() for entry in found)

    def copy(self, source: CheckpointKey, target: CheckpointKey) -> None:
        """Give a checkpoint a second name; files are shared where the disk can, as none changes."""
        with self.write(target, overwrite=True) as folder:
            shutil.copytree(self.folder(source), folder, copy_function=_link_or_copy)

    def delete(self, key: CheckpointKey) -> None:
        """Remove a checkpoint; harmless when it is not there."""
        final = self.folder(key)
        doomed = final.parent / f"{_STAGING}{secrets.token_hex(8)}"
        try:
            final.rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def recover(self, known: set[CheckpointKey]) -> None:
        """Clear what a killed server left: half-written saves, and folders that no row names."""
        if not self._root.is_dir():
            return
        for run in self._root.iterdir():
            for kind in KINDS:
                if (run / kind).is_dir():
                    self._recover_kind(run.name, kind, run / kind, known)

    def _recover_kind(
        self, run_id: str, kind: str, folder: Path, known: set[CheckpointKey]
    ) -> None:
        for entry in sorted(folder.glob(f"{_REPLACED}*")):
            original = folder / entry.name.removeprefix(_REPLACED)
            if not original.exists():
                entry.rename(original)
        for entry in list(folder.iterdir()):
            if CheckpointKey(run_id, kind, entry.name) not in known:
                shutil.rmtree(entry, ignore_errors=True)

    def _replace(self, staging: Path, final: Path) -> None:
        """Put `staging` in the place of `final`. Killed in between, `recover` undoes it."""
        replaced = final.parent / f"{_REPLACED}{final.name}"
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        staging.rename(final)
        _sync_folder(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
