"""Small files written whole or not at all, and having the disk keep what was written."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of mode 0600; it is on the disk when this returns. Blocks.

    A crash at any moment leaves the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    beside = _written(path, content)
    try:
        beside.replace(path)
    except OSError:
        beside.unlink()
        raise
    flush(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file as `write_whole` does, if there is none.

    Raises:
        FileExistsError: there is one, maybe made in this moment; it stays as it is.
        OSError: it cannot be written.
    """
    beside = _written(path, content)
    try:
        path.hardlink_to(beside)
    finally:
        beside.unlink()
    flush(path.parent)


def _written(path: Path, content: bytes) -> Path:
    """Write a file beside `path` that nobody else writes, and have the disk keep it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        beside.unlink()
        raise
    return beside


def read_whole(path: Path) -> bytes | None:
    """Read a file; None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def flush(path: Path) -> None:
    """Have the disk keep a file's contents, or a folder's names, now. Blocks.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have the disk keep a folder and all below it now.

    Raises:
        OSError: the disk refused.
    """
    for entry in folder.rglob("*"):
        flush(entry)
    flush(folder)
