"""The permits that were used: each once, also across restarts, until it has expired.

Owns one SQLite file, and all that it holds in memory. `keep` gives what was used since to the
operating system, before anything is answered; so a process that is killed forgets nothing of which
anybody knows. It is not forced to the disk, which would cost every request several milliseconds;
only a machine that goes down can lose the last ones. So a store that finds that the machine has
started anew since refuses every permit that may have been used before, which is over when those
have expired.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tinkex.errors import RateLimitError, StorageError, TrustError
from tinkex.mesh.identity import PEER_ID_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tinkex._clock import Clock

_TABLES = """
CREATE TABLE IF NOT EXISTS used (
    gateway BLOB NOT NULL, nonce BLOB NOT NULL, forget_at REAL NOT NULL,
    PRIMARY KEY (gateway, nonce)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS used_forget_at ON used (forget_at);
CREATE TABLE IF NOT EXISTS life (
    one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT NOT NULL, not_before REAL NOT NULL);
"""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MOST = 200_000
"""Permits remembered of one gateway; above it, its new ones are refused."""
_LONGEST_NONCE = 64
_PURGE_S = 5.0


def boot_id() -> str | None:
    """Name the machine's life since it started; None where the system does not tell."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


class NonceStore:
    """Remembers nonces.

    Args:
        path: its file; made when it is not there.
        clock: tells the time.
        longest_s: longest that a nonce is remembered, in seconds.
        boot: the machine's life; None has every entry forced to the disk.
        most: nonces of one gateway.

    Raises:
        StorageError: the file cannot be opened, or is damaged.
    """

    def __init__(
        self, path: Path, *, clock: Clock, longest_s: float, boot: str | None, most: int = MOST
    ) -> None:
        self._clock = clock
        self._most = most
        self._path = path
        self._lock = threading.Lock()
        self._purged = clock.monotonic()
        with self._telling():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'NORMAL' if boot else 'FULL'}")
            self._db.executescript(_TABLES)
            self._not_before = self._begin(boot or "", longest_s)
            rows = self._db.execute("SELECT gateway, nonce, forget_at FROM used").fetchall()
            self._used = {gateway + nonce: forget_at for gateway, nonce, forget_at in rows}
            self._counts = Counter(gateway for gateway, _, _ in rows)
            self._unkept: list[tuple[bytes, bytes, float]] = []

    def _begin(self, boot: str, longest_s: float) -> float:
        """Note the machine's life; give the time until which permits may be old ones."""
        found = self._db.execute("SELECT boot, not_before FROM life").fetchone()
        if found is not None and found[0] == boot:
            return float(found[1])
        # Without a boot id every entry was forced to the disk; a new file has nothing to lose.
        lost = found is not None and bool(found[0])
        not_before = self._clock.now() + longest_s if lost else 0.0
        self._db.execute("INSERT OR REPLACE INTO life VALUES (1, ?, ?)", (boot, not_before))
        return not_before

    def use(self, gateway: bytes, nonce: bytes, *, forget_at: float) -> None:
        """Use a nonce up; `keep` it before anything of the work that it permits is told.

        Args:
            gateway: whose it is.
            nonce: at most 64 bytes.
            forget_at: Unix seconds from which it cannot come again.

        Raises:
            TrustError: it was used before, or may have been.
            RateLimitError: too many of this gateway's are remembered.
            StorageError: the file cannot be written.
        """
        if len(gateway) != PEER_ID_BYTES or not 0 < len(nonce) <= _LONGEST_NONCE:
            raise TrustError("the permit has no proper nonce")
        with self._lock:
            self._purge()
            if forget_at <= self._not_before:
                raise TrustError(
                    "the processor's machine was started anew, and it cannot tell whether this "
                    "permit was used before: use another processor for some minutes",
                    retry_after_ms=1000 * (self._not_before - self._clock.now()),
                )
            if self._counts[gateway] >= self._most:
                raise RateLimitError(
                    "this processor remembers too many permits of this gateway: go slower",
                    retry_after_ms=1000 * _PURGE_S,
                )
            if gateway + nonce in self._used:
                raise TrustError("the permit was used before: a permit works once")
            self._used[gateway + nonce] = forget_at
            self._unkept.append((gateway, nonce, forget_at))
            self._counts[gateway] += 1

    def keep(self) -> None:
        """Write down what was used up since: a process that starts anew knows it then.

        Raises:
            StorageError: it could not be written; until this process ends it is remembered.
        """
        with self._lock, self._telling():
            if self._unkept:
                # Some may be there already: from an attempt that failed in the middle.
                self._db.executemany("INSERT OR REPLACE INTO used VALUES (?, ?, ?)", self._unkept)
                self._unkept.clear()

    def __len__(self) -> int:
        """How many are remembered."""
        with self._lock:
            return len(self._used)

    def close(self) -> None:
        """Write what is left, and close the file.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self.keep()
        finally:
            with self._lock:
                self._db.close()

    def _purge(self) -> None:
        """Forget what cannot come again, every few seconds."""
        if self._clock.monotonic() < self._purged + _PURGE_S:
            return
        self._purged, now = self._clock.monotonic(), self._clock.now()
        with self._telling():
            self._db.execute("DELETE FROM used WHERE forget_at <= ?", (now,))
        self._unkept = [row for row in self._unkept if row[2] > now]
        self._used = {key: until for key, until in self._used.items() if until > now}
        self._counts = Counter(key[:PEER_ID_BYTES] for key in self._used)

    def _telling(self) -> AbstractContextManager[None]:
        return _as_storage_error(self._path)


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(
            f"the used permits in {path} cannot be read or written ({error}): check the disk, or "
            "stop the processor for some minutes and delete the file"
        ) from error
