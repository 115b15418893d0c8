"""A store's SQLite file: one thread that writes, one that reads, and one owner.

Owns the connections, group commit and the lock that keeps other processes out. Knows no table.

Whatever waits to be written when the thread is free goes into one transaction: the disk is flushed
once for all of it, or not at all where nobody among them asked for that. Each part has a savepoint,
so one that fails takes no other along, unless the disk is full: then SQLite takes all of it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from tinkex.errors import (
    ClientClosedError,
    ConfigurationError,
    DamagedDataError,
    StorageError,
    TinkerError,
)

T = TypeVar("T")

MAX_GROUP = 512
"""Writes that one flush of the disk makes durable, at most."""
# The statements are fixed: one that SQLite cannot make sense of met other tables than ours.
_DAMAGED = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_MISMATCH,
}
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",  # what is pruned or erased is overwritten
    "PRAGMA cache_size=-4096",
    "PRAGMA cell_size_check=ON",
)


class Transaction:
    """What one write may do: statements, and what is to happen when they are durable, or not."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.after_commit: list[Callable[[], None]] = []
        """Called in the writing thread once everything is on the disk."""
        self.after_rollback: list[Callable[[], None]] = []
        """Called in the writing thread when nothing of it was written."""

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run a statement."""
        return self.connection.execute(statement, values)


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Callable[[Transaction], T]
    flush: bool = True
    loop: asyncio.AbstractEventLoop | None = None
    future: asyncio.Future[T] | None = None
    result: T | None = None
    error: BaseException | None = None
    transaction: Transaction | None = field(default=None)

    def settle(self) -> None:
        assert self.future is not None
        if self.future.done():
            return  # whoever asked has gone; what was written stays written
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)  # type: ignore[arg-type]


class Database:
    """One SQLite file with one owner.

    Args:
        path: the file; its folder is made when it is not there.
        schema: statements that make the tables, run at each opening.
        inline: do everything in the caller's thread, and flush nothing to the disk: for
            simulations, which nothing outlives.
    """

    def __init__(self, path: Path, schema: str, *, inline: bool = False) -> None:
        self.path = path
        self._schema = schema
        self._inline = inline
        self._flushes = True
        self._log_remains = False
        """Whether the write-ahead log is to be emptied, and could not be yet."""
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._writer = _Lane("feeds-writer")
        self._reader = _Lane("feeds-reader")

    async def open(self) -> None:
        """Take the lock, open the file, make the tables.

        Raises:
            ConfigurationError: another process uses the file, or it cannot be opened.
            DamagedDataError: it is no SQLite file, or a damaged one.
        """
        if self._connection is not None:
            raise ConfigurationError(f"{self.path} is open already")
        self._take_lock()
        try:
            with translated(self.path):
                self._connection = self._connect()
                self._flushes = True
                self._connection.executescript(self._schema)
                self._check_schema(self._connection)
                self._reading = self._connection if self._inline else self._connect()
        except BaseException:
            self._shut()
            raise
        if not self._inline:
            self._writer.start(self._write_jobs)
            self._reader.start(self._read_jobs)

    async def close(self) -> None:
        """Finish what waits, and let the file go. Harmless twice."""
        if self._connection is None:
            return
        if not self._inline:
            await asyncio.to_thread(self._writer.stop)
            await asyncio.to_thread(self._reader.stop)
        self._shut()

    async def write(self, work: Callable[[Transaction], T], *, flush: bool = True) -> T:
        """Run `work` in a transaction; what it wrote is on the disk when this returns.

        Args:
            work: gets the transaction.
            flush: whether to wait for the disk. Without, it outlives this process at once, and the
                machine with the next write that waits.

        Raises:
            StorageError: the disk is full or refuses.
            DamagedDataError: the file is damaged.
            ClientClosedError: the database is closed.
        """
        return await self._run(self._writer, _Job(work, flush))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which only reads, beside what is being written.

        Raises:
            DamagedDataError: the file is damaged.
            ClientClosedError: the database is closed.
        """
        return await self._run(self._reader, _Job(lambda transaction: work(transaction.connection)))

    async def checkpoint(self) -> bool:
        """Empty the write-ahead log, so that nothing that was deleted is left in it.

        Returns:
            Whether it is empty; False while something is being read or written: then it is emptied
            after one of the next reads.
        """
        return await self.read(self._empty_log)

    async def _run(self, lane: _Lane, job: _Job[T]) -> T:
        if self._connection is None:
            raise ClientClosedError(f"the store {self.path.name} is closed")
        if self._inline:
            run = self._write_jobs if lane is self._writer else self._read_jobs
            run([job])
            if job.error is not None:
                raise job.error
            return job.result  # type: ignore[return-value]
        job.loop = asyncio.get_running_loop()
        job.future = job.loop.create_future()
        lane.put(job)
        return await job.future

    def _write_jobs(self, jobs: list[_Job[Any]]) -> None:
        assert self._connection is not None
        try:
            with translated(self.path):
                self._flush(self._connection, any(job.flush for job in jobs))
                self._connection.execute("BEGIN IMMEDIATE")
                for job in jobs:
                    self._attempt(self._connection, job)
                self.commit(self._connection)
        except TinkerError as error:
            self._roll_back(self._connection, jobs, error)
            return
        for job in jobs:
            if job.error is None and job.transaction is not None:
                for callback in job.transaction.after_commit:
                    callback()

    def commit(self, connection: sqlite3.Connection) -> None:
        """End the transaction: on the disk, if that was asked for."""
        connection.execute("COMMIT")

    def _flush(self, connection: sqlite3.Connection, flush: bool) -> None:
        """Say whether the next transaction is flushed; that takes all before it along."""
        if flush != self._flushes and not self._inline:
            connection.execute(f"PRAGMA synchronous={'FULL' if flush else 'NORMAL'}")
            self._flushes = flush

    def _attempt(self, connection: sqlite3.Connection, job: _Job[Any]) -> None:
        job.transaction = Transaction(connection)
        connection.execute("SAVEPOINT job")
        try:
            with translated(self.path):
                job.result = job.work(job.transaction)
        except Exception as error:
            job.error = error
            for callback in job.transaction.after_rollback:
                callback()
            if not connection.in_transaction:
                # So SQLite answers a full disk: it has taken everything back, savepoints too.
                why = error.__cause__ or error
                raise StorageError(f"{self.path.name} could not be written: {why}") from error
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _roll_back(
        self, connection: sqlite3.Connection, jobs: list[_Job[Any]], error: TinkerError
    ) -> None:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        for job in jobs:
            if job.error is None:
                job.error = error
                for callback in job.transaction.after_rollback if job.transaction else ():
                    callback()

    def _read_jobs(self, jobs: list[_Job[Any]]) -> None:
        assert self._reading is not None
        for job in jobs:
            try:
                with translated(self.path):
                    job.result = job.work(Transaction(self._reading))
            except Exception as error:  # noqa: BLE001 - the asker gets it
                job.error = error
        if self._log_remains:
            with contextlib.suppress(sqlite3.Error):  # whoever reads or writes next is told
                self._empty_log(self._reading)

    def _empty_log(self, connection: sqlite3.Connection) -> bool:
        self._log_remains = True
        try:
            row = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_LOCKED:
                raise
            return False  # a history is being read, page by page
        self._log_remains = bool(row[0])
        return not self._log_remains

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (*_PRAGMAS, *(["PRAGMA synchronous=OFF"] if self._inline else [])):
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """A table whose name was damaged would come back empty: compare with a new file's."""
        described = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
        with contextlib.closing(sqlite3.connect(":memory:")) as fresh:
            fresh.executescript(self._schema)
            if connection.execute(described).fetchall() != fresh.execute(described).fetchall():
                raise damaged(self.path, "its tables are not those of a store of feeds")

    def _take_lock(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.path.with_name(self.path.name + ".lock")
        try:
            self._lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
            # SQLite gives its other files the rights of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            self._shut()
            raise ConfigurationError(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._lock, 32).decode(errors="replace").strip() or "unknown"
            self._shut()
            raise ConfigurationError(
                f"another process (pid {owner}) uses {self.path}: one worker, one data folder; "
                "stop it, or choose another folder"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _shut(self) -> None:
        for connection in {self._connection, self._reading} - {None}:
            assert connection is not None
            with contextlib.suppress(sqlite3.Error):
                connection.close()
        self._connection = self._reading = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _Lane:
    """A thread that runs jobs in groups of what waits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, run: Callable[[list[_Job[Any]]], None]) -> None:
        self._thread = threading.Thread(
            target=self._loop, args=(run,), name=self._name, daemon=True
        )
        self._thread.start()

    def put(self, job: _Job[Any]) -> None:
        self._waiting.put(job)

    def stop(self) -> None:
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _loop(self, run: Callable[[list[_Job[Any]]], None]) -> None:
        while True:
            jobs, last = self._group()
            if jobs:
                run(jobs)
                _settle(jobs)
            if last:
                return

    def _group(self) -> tuple[list[_Job[Any]], bool]:
        jobs: list[_Job[Any]] = []
        job = self._waiting.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == MAX_GROUP or self._waiting.empty():
                return jobs, False
            job = self._waiting.get()
        return jobs, True


def _settle(jobs: list[_Job[Any]]) -> None:
    for loop in {job.loop for job in jobs}:
        assert loop is not None
        mine = [job for job in jobs if job.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_all, mine)


def _settle_all(jobs: list[_Job[Any]]) -> None:
    for job in jobs:
        job.settle()


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Give SQLite's errors their meaning."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        known = code is not None and (code & 0xFF) in _DAMAGED
        if known or "decode" in str(error):
            raise damaged(path, str(error)) from error
        raise StorageError(f"{path.name} could not be read or written: {error}") from error


def damaged(path: Path, what: str) -> DamagedDataError:
    """The error of a file that does not hold what was written."""
    return DamagedDataError(
        f"{path} is damaged: {what}. Nothing of it was used: start the worker with its recovery, "
        "which keeps what checks and gets the rest from its peers"
    )
