"""Adapters' files on this machine, by content id.

    <root>/<content>/          a whole adapter: its files, and `manifest`
    <root>/.coming/<content>/  one that is being fetched; chunks that are here are not asked for

Owns the folder: nothing becomes visible before it is whole and was checked, what is read is checked
again. Above its size what was given up while it came goes first, then the adapter not used for
longest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Self

from tinkex.errors import DamagedDataError, InputError, NotFoundError, StorageError
from tinkex.mesh.blobs.contents import check_contents
from tinkex.mesh.blobs.manifest import (
    CHUNK_BYTES,
    Manifest,
    content_id,
    is_content_id,
    make_manifest,
    read_manifest,
)

_MANIFEST = "manifest"
_COMING = ".coming"


class BlobStore:
    """A folder of adapters. Its methods read and write files: call them off the event loop.

    Args:
        root: the folder; made when missing.
        max_bytes: of all adapters together.
    """

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._latest: tuple[str, Manifest] | None = None
        self._coming: set[Coming] = set()
        (root / _COMING).mkdir(parents=True, exist_ok=True)

    @property
    def contents(self) -> tuple[str, ...]:
        """Content ids of the whole adapters, latest used first."""
        used_at: dict[str, int] = {}
        for path in self._root.iterdir():
            if is_content_id(path.name):
                with contextlib.suppress(FileNotFoundError):  # another thread removed it
                    used_at[path.name] = path.stat().st_mtime_ns
        return tuple(sorted(used_at, key=used_at.__getitem__, reverse=True))

    def has(self, content: str) -> bool:
        """Whether an adapter is here, whole."""
        return is_content_id(content) and (self._root / content).is_dir()

    def folder(self, content: str) -> Path:
        """Return an adapter's folder, and note that it is used.

        Raises:
            NotFoundError: it is not here.
        """
        if not self.has(content):
            raise NotFoundError(f"there is no adapter {content[:16]} here")
        folder = self._root / content
        os.utime(folder)
        return folder

    def manifest(self, content: str) -> bytes:
        """Return an adapter's manifest.

        Raises:
            NotFoundError: it is not here.
        """
        return (self.folder(content) / _MANIFEST).read_bytes()

    def chunk(self, content: str, place: tuple[int, int]) -> bytes:
        """Read a chunk.

        Raises:
            NotFoundError: it is not here.
            InputError: there is no such chunk.
            DamagedDataError: it is not what it was; the adapter is forgotten.
        """
        folder = self.folder(content)
        latest = self._latest
        if latest is None or latest[0] != content:
            latest = self._latest = content, read_manifest(self.manifest(content), content)
        manifest = latest[1]
        file, chunk = place
        if not (0 <= file < len(manifest.files) and 0 <= chunk < len(manifest.files[file].chunks)):
            raise InputError(f"the adapter has no chunk {place}")
        data = _read(folder / manifest.files[file].name, chunk)
        if not manifest.fits(place, data):
            self.remove(content)
            raise DamagedDataError(f"the files of adapter {content[:16]} were damaged here")
        return data

    def add(self, folder: Path, *, keep: Collection[str] = ()) -> str:
        """Take a copy of an adapter's files in; gives its content id.

        Raises:
            InputError: the folder has no adapter.
            DamagedDataError: its files are not what their names say.
            StorageError: there is no room.
        """
        encoded = make_manifest(folder)
        content = content_id(encoded)
        if self.has(content):
            return content
        with self.begin(content, encoded, keep=keep) as coming:
            for file, chunk in coming.missing():
                name = coming.manifest.files[file].name
                if not coming.write((file, chunk), _read(folder / name, chunk)):
                    raise InputError(f"{name} changed while it was read: publish it again")
            coming.finish()
        return content

    def begin(self, content: str, encoded: bytes, *, keep: Collection[str] = ()) -> Coming:
        """Begin to take an adapter in, or go on with it; its room is held until it is closed.

        Args:
            content: its id.
            encoded: its manifest.
            keep: adapters that must not go for it.

        Raises:
            PeerProtocolError: the manifest is not that of `content`.
            StorageError: there is no room, or the disk refused.
        """
        manifest = read_manifest(encoded, content)
        folder = self._root / _COMING / content
        coming = Coming(folder, self._root / content, manifest, on_close=self._coming.discard)
        with _keeping():
            self._make_room(content, manifest.size, keep)
            self._coming.add(coming)
            try:
                folder.mkdir(exist_ok=True)
                (folder / _MANIFEST).write_bytes(encoded)
            except BaseException:
                coming.close()
                raise
        return coming

    def remove(self, content: str) -> None:
        """Forget an adapter, if it is here."""
        if self.has(content):
            gone = self._root / _COMING / f"{content}.gone"
            shutil.rmtree(gone, ignore_errors=True)
            (self._root / content).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _make_room(self, content: str, size: int, keep: Collection[str]) -> None:
        if size > self._max_bytes:
            raise StorageError(f"the adapter has {size} bytes; this peer keeps {self._max_bytes}")
        begun = {one.content: one.manifest.size for one in tuple(self._coming)}
        begun.pop(content, None)
        given_up = [
            path
            for path in sorted((self._root / _COMING).iterdir(), key=_changed_at)
            if path.name not in begun and path.name != content
        ]
        used = {path: _size(path) for path in given_up}
        used |= {self._root / name: _size(self._root / name) for name in reversed(self.contents)}
        room = self._max_bytes - sum(begun.values()) - size
        for path in list(used):
            if sum(used.values()) <= room:
                return
            if path in given_up:
                shutil.rmtree(path, ignore_errors=True)
                del used[path]
            elif path.name not in keep:
                self.remove(path.name)
                del used[path]
        if sum(used.values()) > room:
            raise StorageError("all adapters that this peer has room for are in use")


def _changed_at(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:  # another thread removed it
        return 0


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            size += path.stat().st_size
    return size


class Coming:
    """An adapter that is being taken in; closed as a context manager, or by `close`."""

    def __init__(
        self,
        folder: Path,
        target: Path,
        manifest: Manifest,
        *,
        on_close: Callable[[Coming], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._target = target
        self._on_close = on_close
        self.content = target.name
        self.manifest = manifest

    def close(self) -> None:
        """Hold no room for it any more. Harmless twice."""
        self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def missing(self) -> list[tuple[int, int]]:
        """Return the chunks that are not here yet, by reading what is.

        Raises:
            StorageError: the disk refused.
        """
        with _keeping():
            return [place for place in self.manifest.places if not self._is_here(place)]

    def _is_here(self, place: tuple[int, int]) -> bool:
        path = self._folder / self.manifest.files[place[0]].name
        return path.exists() and self.manifest.fits(place, _read(path, place[1]))

    def write(self, place: tuple[int, int], data: bytes) -> bool:
        """Take a chunk in, if it is that chunk.

        Raises:
            StorageError: the disk is full or refused.
        """
        if not self.manifest.fits(place, data):
            return False
        path = self._folder / self.manifest.files[place[0]].name
        with _keeping(), path.open("r+b" if path.exists() else "wb") as file:
            file.seek(place[1] * CHUNK_BYTES)
            file.write(data)
        return True

    def finish(self) -> Path:
        """Check the whole, and make it visible.

        Raises:
            DamagedDataError: its files are not what their names say; all of it is erased.
            StorageError: the disk refused.
        """
        if self._target.is_dir():  # somebody else was faster
            shutil.rmtree(self._folder, ignore_errors=True)
            return self._target
        try:
            with _keeping():
                check_contents(self._folder)
                for path in self._folder.iterdir():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                self._folder.rename(self._target)
        except DamagedDataError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        return self._target


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"an adapter cannot be kept: {error.strerror}") from error


def _read(path: Path, chunk: int) -> bytes:
    with path.open("rb") as file:
        file.seek(chunk * CHUNK_BYTES)
        return file.read(CHUNK_BYTES)
