"""A folder of records that are needed until a time each: appended, and gone when all are over.

Owns which file is written, when another is begun, and which are deleted; a file's bytes are
`appended`'s. No file is ever rewritten: one is begun at each start and every few minutes, and
deleted once nothing in it is needed. So what is on disk stays within a few times what is needed,
and what that costs, within opening one file and deleting another now and then.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tinkex._files import flush
from tinkex.mesh.trust.appended import AppendedFile, read_records, sealed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tinkex._clock import Clock

_SUFFIX = ".records"
_NEEDED_UNTIL = struct.Struct(">d")


class RecordFolder:
    """Keeps records.

    Args:
        path: made when it is not there, for its owner alone.
        size: bytes of each record.
        clock: tells the time.
        file_s: for how long a file is written, in seconds.
        forced: whether each write waits for the disk.

    Attributes:
        used_before: whether there are files of an earlier process.

    Raises:
        OSError: it cannot be made or read.
        ValueError: a file in it has a name of another kind.
    """

    def __init__(self, path: Path, *, size: int, clock: Clock, file_s: float, forced: bool) -> None:
        self._path = path
        self._size = size
        self._clock = clock
        self._file_s = file_s
        self._forced = forced
        self._closed = False
        self._file: AppendedFile | None = None
        self._file_begun = self._file_until = 0.0
        self._over: list[tuple[float, Path]] = []
        """Files that are written no more, and until when something in each is needed."""
        if not path.is_dir():
            path.mkdir(mode=0o700)
            flush(path.parent)
        self._found = sorted(path.glob(f"*{_SUFFIX}"))
        self._number = max((int(file.stem) for file in self._found), default=0)
        self.used_before = bool(self._found)

    def load(self, *, damaged: bool) -> list[tuple[float, bytes]]:
        """Read what earlier processes kept.

        Args:
            damaged: whether what is damaged is passed over, and deleted at once.

        Returns:
            Until when each is needed, and the record.

        Raises:
            OSError: a file cannot be read.
            ValueError: one is damaged.
        """
        found: list[tuple[float, bytes]] = []
        for file in self._found:
            records, others = read_records(file, _NEEDED_UNTIL.size + self._size)
            if others and not damaged:
                raise ValueError(f"{others} of the records in {file.name} are damaged")
            read = [
                (_NEEDED_UNTIL.unpack_from(record)[0], record[_NEEDED_UNTIL.size :])
                for record in records
            ]
            found += read
            if others:
                file.unlink()
            else:
                self._over.append((max((until for until, _ in read), default=0.0), file))
        return found

    def append(self, records: Sequence[tuple[float, bytes]]) -> None:
        """Hand records to the operating system, all in one write.

        Args:
            records: Unix seconds until which each is needed, and what it says.

        Raises:
            OSError: it could not be done; none of them counts as kept.
        """
        content = [sealed(_NEEDED_UNTIL.pack(until) + record) for until, record in records]
        file = self._file or self._begin_file()
        file.append(b"".join(content))
        self._file_until = max(self._file_until, max(records)[0])

    def make_room(self) -> None:
        """Delete files of which nothing is needed; the one that is written ends before that.

        Raises:
            OSError: one cannot be deleted.
        """
        now = self._clock.now()
        if self._clock.monotonic() >= self._file_begun + self._file_s:
            self._end_file()
        for entry in [entry for entry in self._over if entry[0] <= now]:
            entry[1].unlink(missing_ok=True)
            self._over.remove(entry)

    def close(self) -> None:
        """Close the file that is written; nothing waits to be."""
        self._closed = True
        self._end_file()

    def _begin_file(self) -> AppendedFile:
        """Begin a file that no process has written to."""
        if self._closed:
            raise OSError("it is closed")
        while True:
            self._number += 1
            try:
                file = AppendedFile(self._path / f"{self._number:08}{_SUFFIX}", forced=self._forced)
            except FileExistsError:
                continue
            self._file, self._file_until = file, 0.0
            self._file_begun = self._clock.monotonic()
            return file

    def _end_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            self._over.append((self._file_until, file.path))
            file.close()
