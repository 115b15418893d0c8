"""One thread that writes to the database, many pieces of work to a commit.

Owns the connection, the order and the grouping: work is done in the order in which it was handed
in, and all that has come in while one commit was under way makes up the next. Knows nothing of what
is written.

Some work must not be lost though the disk refuses it for a while (a result that will be told, the
end of a request): it stays first in line and is tried again. Other work may be refused: its caller
hears at once and nothing of it is there.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Work = Callable[[sqlite3.Connection], Any]

R = TypeVar("R")

BUSY_TIMEOUT_MS = 10_000
WAL_LIMIT_BYTES = 64 * 2**20
MAX_GROUP = 1000
"""Pieces of work of one commit."""


@dataclass(slots=True, eq=False)
class _Item:
    work: Work
    done: asyncio.Future[Any]
    refusable: bool
    outcome: Any = None
    error: BaseException | None = None


class DatabaseWriter:
    """Writes in a thread of its own.

    Args:
        database: the SQLite file; it has its tables.
        on_fault: told of what is a bug or a broken disk. Called on the event loop.
        on_stalled: told that the disk refused what must not be lost; call `retry` later.
    """

    def __init__(
        self,
        database: Path,
        *,
        on_fault: Callable[[BaseException], None],
        on_stalled: Callable[[], None],
    ) -> None:
        self._database = database
        self._on_fault = on_fault
        self._on_stalled = on_stalled
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._changed = threading.Condition()
        # Guarded by `_changed`:
        self._items: deque[_Item] = deque()
        self._stopping = False
        self._retry = False
        # The event loop's own:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.stalled = False
        """Whether the disk refused what must not be lost, and has not taken it yet."""

    def start(self) -> None:
        """Start the thread; call it on the event loop that hands in the work."""
        self._loop = asyncio.get_running_loop()
        self._database.touch(mode=0o600)
        self._database.chmod(0o600)  # the files beside it are made with the same mode
        self._thread.start()

    def write(self, work: Callable[[sqlite3.Connection], R], *, refusable: bool = False) -> Any:
        """Do `work` within the next commit.

        Args:
            work: gets the connection, within a transaction; may run more than once.
            refusable: whether it may fail for lack of room; otherwise it is tried until it works.

        Returns:
            A future of its outcome, set when that is on disk. It raises sqlite3.Error for work that
            is refused.
        """
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._stopping:
                done.set_exception(sqlite3.OperationalError("the server is stopping"))
                return done
            self._items.append(_Item(work, done, refusable))
            self._changed.notify()
        return done

    def retry(self) -> None:
        """Try again what the disk refused."""
        with self._changed:
            self._retry = True
            self._changed.notify()

    async def stop(self) -> None:
        """Write what has been handed in, once, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    # in the thread

    def _run(self) -> None:
        with closing(self._connect()) as connection:
            refused: deque[_Item] = deque()
            while True:
                with self._changed:
                    while not (self._items or self._stopping or (refused and self._retry)):
                        self._changed.wait()
                    self._retry = False
                    while self._items and len(refused) < MAX_GROUP:
                        refused.append(self._items.popleft())
                    last = self._stopping and not self._items
                group, refused = refused, deque()
                self._commit(connection, group)
                refused.extend(item for item in group if _is_open(item))
                self._tell([item for item in group if not _is_open(item)], stalled=bool(refused))
                if last:
                    for item in refused:
                        item.refusable = True
                    self._tell(list(refused), stalled=False)
                    return

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, isolation_level=None)
        for pragma in (
            "journal_mode = WAL",
            # FULL: what was acknowledged lasts through a power cut too. A commit is one fsync.
            "synchronous = FULL",
            # What is deleted is overwritten: requests carry people's data.
            "secure_delete = ON",
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            f"journal_size_limit = {WAL_LIMIT_BYTES}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _commit(self, connection: sqlite3.Connection, group: deque[_Item]) -> None:
        """Do all in one transaction; when that fails, each by itself, up to what must wait."""
        for item in group:
            item.error = None
        if not self._transact(connection, list(group)) or len(group) == 1:
            return
        blocked: BaseException | None = None
        for item in group:
            if blocked is not None:
                # Nothing overtakes what must not be lost.
                item.error = blocked
                continue
            self._transact(connection, [item])
            if _is_open(item):
                blocked = item.error

    @staticmethod
    def _transact(connection: sqlite3.Connection, items: list[_Item]) -> bool:
        """Do the work of `items` and commit; say whether that failed, each then has the error."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            for item in items:
                item.outcome = item.work(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must hear of it
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for item in items:
                item.error = error
            return True
        for item in items:
            item.error = None
        return False

    def _tell(self, items: list[_Item], *, stalled: bool) -> None:
        def deliver() -> None:
            for item in items:
                _settle(item)
                if item.error is not None and not item.refusable:
                    self._on_fault(item.error)
            newly = stalled and not self.stalled
            self.stalled = stalled
            if stalled:
                if newly:
                    self._on_fault(OSError("the disk takes nothing; what is unwritten is kept"))
                self._on_stalled()

        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            return  # the loop is closed: the process ends, and nobody waits


def _is_open(item: _Item) -> bool:
    """Whether an item must be tried again: the disk refused it, and it must not be lost."""
    return isinstance(item.error, sqlite3.OperationalError) and not item.refusable


def _settle(item: _Item) -> None:
    if item.done.done():
        return
    if item.error is None:
        item.done.set_result(item.outcome)
    else:
        item.done.set_exception(item.error)
        item.done.exception()  # read here: nobody has to wait for it
