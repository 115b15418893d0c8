"""The database's side of what is written down.

Owns the queries. One batch of entries is one transaction: its requests, their usage and their
metrics are there together or not at all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from tinkex.server.records.tables import REQUESTS, TRAINING_METRICS, USAGE_HOURS
from tinkex.server.records.usage import FIELDS, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import RowMapping, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tinkex.server.records.work import Entry
    from tinkex.server.storage.store import Store

HOUR_S = 3600
MAX_ERROR_CHARACTERS = 300
OPTIM_STEP, FORWARD = "optim_step", "forward"
MAX_KNOWN_RUNS = 10_000

_KEYS = ("hour", "owner", "key_id", "session_id", "source_id", "base_model")


class RecordStore:
    """Requests, usage and metrics in the server's database.

    Args:
        store: gives the connections.
        max_metric_rows: rows of one run's metrics; above it the older half is thinned.
        max_request_rows: ended requests; above it (and an eighth more) the oldest go.
    """

    def __init__(self, store: Store, *, max_metric_rows: int, max_request_rows: int) -> None:
        self._store = store
        self._max_metric_rows = max_metric_rows
        self._max_request_rows = max_request_rows
        self._since_erasing = 0
        self._runs: dict[str, tuple[int, int]] = {}
        """By run: its optimiser steps, and its rows of metrics."""

    async def add(self, entries: Sequence[Entry]) -> list[Entry]:
        """Write entries down; returns those that were not there yet, which alone are counted."""
        async with self._store.begin() as connection:
            known = await _known(connection, [entry.request_id for entry in entries])
            new = [entry for entry in entries if entry.request_id not in known]
            if not new:
                return new
            await connection.execute(insert(REQUESTS), [_request_row(entry) for entry in new])
            await _add_usage(connection, new)
            runs = await self._add_metrics(connection, new)
            self._since_erasing += len(new)
            if self._since_erasing > self._max_request_rows // 8:
                await self._erase_oldest(connection)
                self._since_erasing = 0
        self._runs.update(runs)  # not before it is committed
        if len(self._runs) > MAX_KNOWN_RUNS:
            self._runs.clear()
        return new

    async def used(self, key_id: str) -> Usage:
        """Return everything that was written down for a key."""
        sums = [func.coalesce(func.sum(USAGE_HOURS.c[name]), 0).label(name) for name in FIELDS]
        (row,) = await self.all(select(*sums).where(USAGE_HOURS.c.key_id == key_id))
        return Usage(**row)

    async def all(self, statement: Select[Any]) -> Sequence[RowMapping]:
        """Run a query."""
        async with self._store.begin() as connection:
            rows: Sequence[RowMapping] = (await connection.execute(statement)).mappings().all()
            return rows

    async def prune(self, *, requests_before: float, metrics_before: float) -> None:
        """Erase what is too old, and of the requests what is too many: the oldest."""
        async with self._store.begin() as connection:
            await self._erase_oldest(connection)
            await connection.execute(
                delete(REQUESTS).where(REQUESTS.c.finished_at < requests_before)
            )
            await connection.execute(
                delete(TRAINING_METRICS).where(TRAINING_METRICS.c.at < metrics_before)
            )

    async def _erase_oldest(self, connection: AsyncConnection) -> None:
        newest = await connection.scalar(select(func.max(REQUESTS.c.number)))
        await connection.execute(
            delete(REQUESTS).where(REQUESTS.c.number <= (newest or 0) - self._max_request_rows)
        )

    async def _add_metrics(
        self, connection: AsyncConnection, entries: Sequence[Entry]
    ) -> dict[str, tuple[int, int]]:
        """Append metrics in the order of the entries; a step's number is that of its optim_step."""
        told = [entry for entry in entries if entry.metrics is not None]
        if not told:
            return {}
        runs: dict[str, tuple[int, int]] = {}
        rows = []
        for entry in told:
            run_id = entry.source.source_id
            if run_id not in runs:
                runs[run_id] = self._runs.get(run_id) or await _progress(connection, run_id)
            steps, count = runs[run_id]
            rows.append(_metrics_row(entry, steps + 1))
            runs[run_id] = steps + (entry.operation == OPTIM_STEP), count + 1
        await connection.execute(insert(TRAINING_METRICS), rows)
        for run_id, (steps, count) in runs.items():
            if count > self._max_metric_rows:
                runs[run_id] = steps, count - await _thin(connection, run_id)
        return runs


async def _known(connection: AsyncConnection, request_ids: Sequence[str]) -> set[str]:
    found = await connection.execute(
        select(REQUESTS.c.request_id).where(REQUESTS.c.request_id.in_(request_ids))
    )
    return set(found.scalars())


async def _add_usage(connection: AsyncConnection, entries: Sequence[Entry]) -> None:
    amounts: defaultdict[tuple[Any, ...], Usage] = defaultdict(Usage)
    for entry in entries:
        source = entry.source
        hour = int(entry.finished_at) // HOUR_S * HOUR_S
        place = hour, *(getattr(source, name) for name in _KEYS[1:])
        amounts[place] += entry.usage
    statement = upsert(USAGE_HOURS)
    added = {name: USAGE_HOURS.c[name] + statement.excluded[name] for name in FIELDS}
    await connection.execute(
        statement.on_conflict_do_update(index_elements=list(_KEYS), set_=added),
        [
            dict(zip(_KEYS, place, strict=True)) | {name: getattr(usage, name) for name in FIELDS}
            for place, usage in amounts.items()
        ],
    )


async def _progress(connection: AsyncConnection, run_id: str) -> tuple[int, int]:
    """Read how far a run is: its optimiser steps, and how many rows there are of it."""
    mine = TRAINING_METRICS.c.run_id == run_id
    steps = await connection.scalar(
        select(func.max(TRAINING_METRICS.c.step)).where(
            mine, TRAINING_METRICS.c.operation == OPTIM_STEP
        )
    )
    count = await connection.scalar(select(func.count()).where(mine))
    return steps or 0, count or 0


async def _thin(connection: AsyncConnection, run_id: str) -> int:
    """Erase every second step of the older half of a run's; returns how many rows went."""
    steps = (
        select(
            TRAINING_METRICS.c.step,
            func.row_number().over(order_by=TRAINING_METRICS.c.step).label("place"),
            func.count().over().label("total"),
        )
        .where(TRAINING_METRICS.c.run_id == run_id)
        .group_by(TRAINING_METRICS.c.step)
        .subquery()
    )
    gone = select(steps.c.step).where(steps.c.place % 2 == 0, steps.c.place * 2 <= steps.c.total)
    done = await connection.execute(
        delete(TRAINING_METRICS).where(
            TRAINING_METRICS.c.run_id == run_id, TRAINING_METRICS.c.step.in_(gone)
        )
    )
    return int(done.rowcount)


def _request_row(entry: Entry) -> dict[str, Any]:
    source, usage = entry.source, entry.usage
    return {
        "request_id": entry.request_id,
        "owner": source.owner,
        "session_id": source.session_id,
        "source_id": source.source_id,
        "operation": entry.operation,
        "accepted_at": entry.accepted_at,
        "began_at": entry.began_at,
        "finished_at": entry.finished_at,
        "engine_s": entry.engine_s,
        "amounts": {
            name: amount
            for name in FIELDS
            if (amount := getattr(usage, name)) and name.endswith(("_tokens", "checkpoints"))
        },
        "error": None if entry.error is None else entry.error[:MAX_ERROR_CHARACTERS],
    }


def _metrics_row(entry: Entry, step: int) -> dict[str, Any]:
    # On the way in the two are one request with a mark; a curve must not mix them.
    return {
        "run_id": entry.source.source_id,
        "request_id": entry.request_id,
        "operation": FORWARD if entry.usage.forward_tokens else entry.operation,
        "step": step,
        "at": entry.finished_at,
        "tokens": entry.usage.forward_tokens + entry.usage.forward_backward_tokens,
        "metrics": entry.metrics,
    }
