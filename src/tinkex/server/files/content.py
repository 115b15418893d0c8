"""Bytes that are sent whole or in part: a file, or an archive that never exists as a file.

Owns reading any part of one. Each holds its files open, so that what is deleted meanwhile is still
sent to its end. What a part is asked for with is `ranges`.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PADDING = bytes(512)
_BLOCK = 65_535
"""Most bytes of one stored block (RFC 1951, 3.2.4)."""
_BLOCK_HEADER = 5
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""No name, no time, no system: equal contents are equal bytes (RFC 1952, 2.3)."""
_TRAILER = 8
SCAN_BYTES = 2**20


class Content(Protocol):
    """Bytes with random access; close it."""

    size: int
    """Bytes of all of it."""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; fewer at the end alone. Blocks."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class FileContent:
    """A file as it is when this is made.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        found = os.fstat(self._descriptor)
        self.size = found.st_size
        self.state = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        """Tells it from what the same name stood for before, and from every other file."""

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        return os.pread(self._descriptor, max(0, min(length, self.size - offset)), offset)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


class BytesContent:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Hold nothing."""


class JoinedContent:
    """Several contents, one after the other; closes them."""

    def __init__(self, parts: Sequence[Content]) -> None:
        self._parts = [part for part in parts if part.size]
        self._empty = [part for part in parts if not part.size]
        self._starts = list(accumulate((part.size for part in self._parts), initial=0))
        self.size = self._starts[-1]

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        end = min(offset + length, self.size)
        pieces = []
        while offset < end:
            index = bisect_right(self._starts, offset) - 1
            within = offset - self._starts[index]
            wanted = min(end, self._starts[index + 1]) - offset
            piece = self._parts[index].read(within, wanted)
            if len(piece) != wanted:
                raise OSError("a file became shorter while it was sent")
            pieces.append(piece)
            offset += wanted
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of every part."""
        for part in (*self._parts, *self._empty):
            part.close()


def tar_content(files: Mapping[str, Content], *, modified: int) -> JoinedContent:
    """Lay contents out as a tar archive: equal contents and times give equal bytes.

    Args:
        files: by their names in the archive, in its order; the archive closes them.
        modified: the time that each entry bears, unix seconds.
    """
    parts: list[Content] = []
    for name, content in files.items():
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = content.size, modified, 0o644
        parts += [BytesContent(entry.tobuf(tarfile.PAX_FORMAT)), content]
        parts.append(BytesContent(_PADDING[: -content.size % 512]))
    parts.append(BytesContent(_PADDING * 2))  # the end of an archive
    return JoinedContent(parts)


class GzipContent:
    """A content in gzip's format, stored and not compressed, so that each part of it has a place.

    Weights hardly compress, and a download that broke can go on at any byte.

    Args:
        content: what is packed; closed with this.
        crc: its CRC-32, as `checksum` gives it.
    """

    def __init__(self, content: Content, crc: int) -> None:
        self._content = content
        blocks = max(1, -(-content.size // _BLOCK))
        self._trailer_at = len(_GZIP_HEADER) + blocks * _BLOCK_HEADER + content.size
        self._trailer = struct.pack("<LL", crc, content.size % 2**32)
        self.size = self._trailer_at + _TRAILER

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        end = min(offset + length, self.size)
        pieces = []
        while offset < end:
            start, piece = self._piece(offset, end)
            pieces.append(piece[offset - start : end - start])
            offset += len(pieces[-1])
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of the content."""
        self._content.close()

    def _piece(self, offset: int, end: int) -> tuple[int, bytes]:
        """Return the header, block or trailer that an offset lies in: (its start, its bytes)."""
        if offset < len(_GZIP_HEADER):
            return 0, _GZIP_HEADER
        if offset >= self._trailer_at:
            return self._trailer_at, self._trailer
        number, within = divmod(offset - len(_GZIP_HEADER), _BLOCK + _BLOCK_HEADER)
        start = offset - within
        begin = number * _BLOCK
        count = min(_BLOCK, self._content.size - begin)
        if within < _BLOCK_HEADER:
            last = begin + count == self._content.size
            return start, struct.pack("<BHH", last, count, count ^ 0xFFFF)
        skipped = within - _BLOCK_HEADER
        wanted = min(count - skipped, end - offset)
        return offset, self._content.read(begin + skipped, wanted)


def checksum(content: Content) -> int:
    """Return the CRC-32 of a content. Blocks, and reads all of it."""
    crc = 0
    for offset in range(0, content.size, SCAN_BYTES):
        crc = zlib.crc32(content.read(offset, SCAN_BYTES), crc)
    return crc
