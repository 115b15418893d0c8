"""How long checkpoints lie on the disk, and how large they are.

Owns the spans: one begins with a checkpoint and ends when it is deleted or written over. They are
noted in the transaction that changes the checkpoint. Gigabytes are of 10^9 bytes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, update

from tinkex.server.records.tables import STORAGE_SPANS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tinkex.server.storage.blobs import CheckpointKey

GIGABYTE = 10**9
HOUR_S = 3600


async def note_stored(
    connection: AsyncConnection, key: CheckpointKey, *, owner: str, size_bytes: int, at: float
) -> None:
    """Begin the span of a checkpoint written at `at`, unless that is noted; end the earlier one."""
    spans = STORAGE_SPANS.c
    same = await connection.execute(
        STORAGE_SPANS.select().where(
            *_open_spans(key), spans.began_at == at, spans.size_bytes == size_bytes
        )
    )
    if same.first() is not None:
        return
    await note_erased(connection, key, at=at)
    await connection.execute(
        insert(STORAGE_SPANS).values(
            run_id=key.run_id,
            kind=key.kind,
            name=key.name,
            owner=owner,
            size_bytes=size_bytes,
            began_at=at,
        )
    )


async def note_erased(connection: AsyncConnection, key: CheckpointKey, *, at: float) -> None:
    """End the span of a checkpoint."""
    await connection.execute(update(STORAGE_SPANS).where(*_open_spans(key)).values(ended_at=at))


def gigabyte_hours(
    spans: Iterable[RowMapping], *, start: int, end: int, now: float
) -> Iterator[tuple[int, tuple[Any, ...], float]]:
    """Sum spans by the hour: (start of the hour, the span's `group`, gigabyte-hours).

    Args:
        spans: with `size_bytes`, `began_at`, `ended_at` and the columns that make the group.
        start: first hour, in unix seconds.
        end: the hour after the last.
        now: where a span that has not ended is cut.
    """
    hours = (end - start) // HOUR_S
    partial: defaultdict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0.0] * hours)
    change: defaultdict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0.0] * (hours + 1))
    for span in spans:
        began = max(span["began_at"], start)
        ended = min(span["ended_at"] or now, end, now)
        if ended <= began:
            continue
        group = span["owner"], span["session_id"], span["base_model"], span["project_id"]
        size = span["size_bytes"] / GIGABYTE
        first, last = int(began - start) // HOUR_S, int(ended - start) // HOUR_S
        # whole hours by their ends alone, then what the first and the last lack
        change[group][first] += size
        change[group][last] -= size
        partial[group][first] -= size * ((began - start) / HOUR_S - first)
        if last < hours:
            partial[group][last] += size * ((ended - start) / HOUR_S - last)
    for group, changes in change.items():
        level = 0.0
        for place in range(hours):
            level += changes[place]
            amount = level + partial[group][place]
            if amount > 1e-15:
                yield start + place * HOUR_S, group, amount


def _open_spans(key: CheckpointKey) -> tuple[Any, ...]:
    spans = STORAGE_SPANS.c
    return (
        spans.run_id == key.run_id,
        spans.kind == key.kind,
        spans.name == key.name,
        spans.ended_at.is_(None),
    )
