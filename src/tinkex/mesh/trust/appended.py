"""Records of one length in a file that only grows, each with a check of its own.

Owns the bytes on disk, and what a write that failed leaves there; what a record says is its
caller's business. A file is written by the process that made it, never by a later one; so whatever
a killed process left unfinished stands at its end, for good, and is passed over by who reads it.
Records have one length, so damage to one cannot hide those behind it, as a damaged length would.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING
from zlib import crc32

from tinkex._files import flush

if TYPE_CHECKING:
    from pathlib import Path

_CHECK_BYTES = 4
_MODE = 0o600


def sealed(record: bytes) -> bytes:
    """Return a record with its check (CRC-32), as it lies on disk."""
    return record + crc32(record).to_bytes(_CHECK_BYTES, "big")


def unsealed(content: bytes) -> bytes:
    """Return a record without its check.

    Raises:
        ValueError: it is not what was written.
    """
    record = content[:-_CHECK_BYTES]
    if len(content) < _CHECK_BYTES or sealed(record) != content:
        raise ValueError("damaged")
    return record


def read_records(path: Path, size: int) -> tuple[list[bytes], int]:
    """Read a file of records.

    Args:
        path: the file.
        size: bytes of each record, without its check.

    Returns:
        Those that are as they were written, in order, and how many others there are. A record that
        the file ends in the middle of is neither: writing it down had not ended.

    Raises:
        OSError: it cannot be read.
    """
    content, step = path.read_bytes(), size + _CHECK_BYTES
    found = []
    whole = len(content) // step
    for start in range(0, whole * step, step):
        with contextlib.suppress(ValueError):
            found.append(unsealed(content[start : start + step]))
    return found, whole - len(found)


class AppendedFile:
    """A file of records that is being written; its owner's alone.

    Args:
        path: of a file that is not there yet.
        forced: whether each write waits for the disk.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, *, forced: bool) -> None:
        self.path = path
        """The file."""
        self._forced = forced
        self._length = 0
        self._torn = False
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(path, flags, _MODE)
        if forced:
            try:
                flush(path.parent)
            except OSError:
                self.close()
                path.unlink()
                raise

    def append(self, records: bytes) -> None:
        """Hand sealed records to the operating system, in one write that is not buffered.

        Raises:
            OSError: it could not be done whole; nothing of it will be there. Where even what was
                written of it cannot be cut off, each call tries that first.
        """
        if self._torn:
            self._cut()
        self._torn = True  # until it is known to be whole
        try:
            written = os.write(self._descriptor, records)
            if self._forced:
                os.fsync(self._descriptor)
        except OSError:
            self._try_to_cut()
            raise
        if written < len(records):
            self._try_to_cut()
            raise OSError(errno.ENOSPC, f"{written} of {len(records)} bytes could be written")
        self._length += written
        self._torn = False

    def close(self) -> None:
        """Close it; nothing waits to be written."""
        os.close(self._descriptor)

    def _try_to_cut(self) -> None:
        with contextlib.suppress(OSError):
            self._cut()

    def _cut(self) -> None:
        """Take away what a write left that failed: others would follow in the middle of a record.

        What could be written but not be forced to the disk goes too: an operating system may take
        pages that the disk refused for written, so they are written anew.
        """
        os.ftruncate(self._descriptor, self._length)
        self._torn = False
