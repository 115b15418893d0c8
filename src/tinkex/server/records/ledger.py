"""Every request that ended, written down once.

Owns when that happens: entries gather in memory and go to the database together, a second after the
first of them or when there are many, so that a sample costs no commit of its own. A graceful stop
writes all of them, and so does a snapshot of a training run. A server that is killed loses those of
its last second (`FLUSH_S`), but for what it carries out again when it is back, which is all that
its runs did since their snapshots. A request is known by its id, so none is counted twice.

What can be read of it is `reports`, `metrics` and `trace`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from tinkex.errors import EngineError
from tinkex.server.futures import Operation
from tinkex.server.records.usage import Usage
from tinkex.server.records.work import Entry, Source, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tinkex._clock import Clock
    from tinkex._timers import Timer, Timers
    from tinkex.server.futures import Future
    from tinkex.server.records.store import RecordStore
    from tinkex.server.tasks import Tasks

FLUSH_S = 1.0
"""Seconds after which an entry is written."""
FLUSH_ENTRIES = 500
"""Entries that are written at once, however young they are."""
RETRY_S = 30.0
"""Seconds until the database is tried again after it refused."""
MAX_PENDING = 100_000
"""Entries kept while the database refuses; beyond it the oldest are lost, and the log says so."""


class Ledger:
    """The book of one server.

    Args:
        store: the database's side.
        clock: tells time.
        timers: says when to write.
        tasks: runs the writing.
        on_fault: told of entries that could not be written.
    """

    def __init__(
        self,
        store: RecordStore,
        *,
        clock: Clock,
        timers: Timers,
        tasks: Tasks,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._timers = timers
        self._tasks = tasks
        self._on_fault = on_fault
        self._pending: list[Entry] = []
        self._unwritten: defaultdict[str, Usage] = defaultdict(Usage)
        self._written: dict[str, Usage] = {}
        self._lock = asyncio.Lock()
        self._timer: Timer | None = None
        self._stopping = False

    def begin(self, future: Future, source: Source, *, prompt_tokens: int = 0) -> Work:
        """Note that a request was accepted.

        Args:
            future: its future; from now on its end is an entry.
            source: what it is counted on.
            prompt_tokens: length of its prompt, for a sample.
        """
        work = future.work = self.work(source)
        work.prompt_tokens = prompt_tokens
        return work

    def work(self, source: Source) -> Work:
        """Begin to count work whose end `repeated` notes, or a future's."""
        return Work(source, self._clock.now(), self._clock.monotonic())

    def ended(self, future: Future) -> None:
        """Note that a future has ended. What only the server's stop ended is not over: no entry."""
        work: Work | None = future.work
        if work is None or (self._stopping and future.error is not None):
            return
        error = None if future.error is None else str(future.error)
        self._add(self._entry(future.request_id, future.operation, work, error))

    def repeated(self, request_id: str, operation: Operation, work: Work) -> None:
        """Note that what an earlier process had ended was carried out once more after a crash.

        It is an entry if that process did not come to write it down; otherwise nothing.
        """
        self._add(replace(self._entry(request_id, operation, work, None), again=True))

    def _add(self, entry: Entry) -> None:
        self._pending.append(entry)
        if not entry.again:
            self._unwritten[entry.source.key_id] += entry.usage
        if len(self._pending) > MAX_PENDING:
            self._drop_oldest()
        self._write_in(0.0 if len(self._pending) == FLUSH_ENTRIES else FLUSH_S)

    async def flush(self) -> None:
        """Write everything that has ended until now."""
        async with self._lock:
            self._unschedule()
            while self._pending:
                batch = self._pending[:FLUSH_ENTRIES]
                added = await self._store.add(batch)
                del self._pending[: len(batch)]
                self._settle(added)

    async def settle(self) -> None:
        """Write everything that has ended until now; if the database refuses, later."""
        try:
            await self.flush()
        except Exception as error:  # noqa: BLE001 - whoever asks has more important things to do
            self._on_fault(error)
            self._write_in(RETRY_S)

    async def used(self, key_id: str) -> Usage:
        """Return what a key has used since it was made, up to this moment."""
        if key_id not in self._written:
            async with self._lock:
                self._written[key_id] = await self._store.used(key_id)
        unwritten = self._unwritten.get(key_id)
        return self._written[key_id] + unwritten if unwritten else self._written[key_id]

    def begin_stop(self) -> None:
        """From now on a failure is the stop of the server; `close` writes what is left."""
        self._stopping = True
        self._unschedule()

    async def close(self) -> None:
        """Write what is left; what the database refuses now is lost, and the log says so."""
        try:
            await self.flush()
        except Exception as error:  # noqa: BLE001 - the server must come to its end
            self._lost(len(self._pending), error)

    def _entry(self, request_id: str, operation: Operation, work: Work, error: str | None) -> Entry:
        failed, seconds = error is not None, work.engine_s
        sampling = operation is Operation.SAMPLE
        usage = Usage(
            requests=not failed,
            failed_requests=failed,
            training_s=0.0 if sampling else seconds,
            sampling_s=seconds if sampling else 0.0,
        )
        usage += work.used(failed=failed)
        return Entry(
            request_id=request_id,
            source=work.source,
            operation=operation.value,
            accepted_at=work.accepted_at,
            began_at=None if work.began is None else work.accepted_at + work.began - work.accepted,
            finished_at=work.accepted_at + self._clock.monotonic() - work.accepted,
            engine_s=seconds,
            error=error,
            usage=usage,
            metrics=None if failed else work.metrics,
        )

    def _write_in(self, seconds: float) -> None:
        if self._stopping:
            return
        if self._timer is not None and not self._timer.cancelled and seconds:
            return
        self._unschedule()
        self._timer = self._timers.call_later(seconds, self._begin_write)

    def _unschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_write(self) -> None:
        self._tasks.spawn(self.settle(), name="write records")

    def _settle(self, added: Iterable[Entry]) -> None:
        """Move what was written from one sum to the other; what was there already stays out."""
        for entry in added:
            key_id = entry.source.key_id
            if key_id in self._written:
                self._written[key_id] += entry.usage
        self._sum_pending()

    def _sum_pending(self) -> None:
        self._unwritten.clear()
        for entry in self._pending:
            if not entry.again:
                self._unwritten[entry.source.key_id] += entry.usage

    def _drop_oldest(self) -> None:
        lost = MAX_PENDING // 10
        del self._pending[:lost]
        self._sum_pending()
        self._lost(lost, None)

    def _lost(self, count: int, cause: Exception | None) -> None:
        error = EngineError(
            f"{count} requests' usage, metrics and trace were not written, as the database refused "
            "them. Make room on its disk, or see the errors before this one."
        )
        error.__cause__ = cause
        self._on_fault(error)
