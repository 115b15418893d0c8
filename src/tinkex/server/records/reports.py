"""Usage as it is asked for: sums by groups, and the official API's hourly events.

Owns what may be asked for and the form of the answers. There are no prices on a server of one's
own, so every cost is absent.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, or_, select

from tinkex.server.records.projects import project_of
from tinkex.server.records.storage import GIGABYTE, HOUR_S, gigabyte_hours
from tinkex.server.records.tables import STORAGE_SPANS, USAGE_HOURS
from tinkex.server.records.usage import FIELDS
from tinkex.server.refusal import invalid_fields
from tinkex.server.storage.tables import CHECKPOINTS, SESSIONS, TRAINING_RUNS
from tinkex.types import (
    BillingUsageEvent,
    BillingUsageResponse,
    BillingUsageSession,
    CheckpointBillingEvent,
    CurrentCheckpointStorageUsageItem,
    CurrentCheckpointStorageUsageResponse,
    SamplingPrefillBillingEvent,
    SamplingSampleBillingEvent,
    StorageBillingEvent,
    TrainingBillingEvent,
    UsageReport,
    UsageRow,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement, RowMapping

    from tinkex._clock import Clock
    from tinkex.server.records.ledger import Ledger
    from tinkex.server.records.store import RecordStore
    from tinkex.types import BillingEventInfo
    from tinkex.types.records import UsageGroup

DAY_S = 24 * HOUR_S
MAX_BILLING_DAYS = 14
MAX_ROWS = 100_000

_H = USAGE_HOURS.c
_GROUPS: dict[str, ColumnElement[Any]] = {
    "hour": _H.hour,
    "day": _H.hour - _H.hour % DAY_S,
    "account": _H.owner,
    "key": _H.key_id,
    "session": _H.session_id,
    "source": _H.source_id,
    "base_model": _H.base_model,
}
GROUPS = tuple(_GROUPS)


class Reports:
    """Reads what the ledger wrote."""

    def __init__(self, ledger: Ledger, store: RecordStore, *, clock: Clock) -> None:
        self._ledger = ledger
        self._store = store
        self._clock = clock

    async def usage(
        self, owner: str | None, *, start: datetime, end: datetime, by: Sequence[UsageGroup]
    ) -> UsageReport:
        """Sum usage between two moments; a whole hour is counted by its start.

        Args:
            owner: whose; None is everybody's.
            start: the first moment.
            end: the moment after the last.
            by: what makes a group; nothing makes one sum of all.

        Raises:
            Refusal: 422 for an end before the start, or more than 100,000 groups.
        """
        if end <= start:
            raise invalid_fields("ending_before must be after starting_on.")
        await self._ledger.settle()
        groups = [_GROUPS[name].label(name) for name in dict.fromkeys(by)]
        rows = await self._store.all(
            select(*groups, *_sums())
            .where(*_within(owner, start, end))
            .group_by(*groups)
            .order_by(*groups)
            .limit(MAX_ROWS + 1)
            if groups
            else select(*_sums()).where(*_within(owner, start, end))
        )
        if len(rows) > MAX_ROWS:
            raise invalid_fields(
                f"That are more than {MAX_ROWS} rows: ask for a shorter time, or fewer groups."
            )
        return UsageReport(starting_on=start, ending_before=end, rows=[_usage_row(r) for r in rows])

    async def billing(
        self, owner: str | None, start: datetime, end: datetime
    ) -> BillingUsageResponse:
        """List usage events as the official API does: by hour, kind, base model and session.

        Raises:
            Refusal: 422 for a window that is no whole hours, or longer than 14 days.
        """
        _check_billing_window(start, end, self._clock.now())
        await self._ledger.settle()
        groups = [_H.hour, _H.owner, _H.session_id, _H.base_model]
        rows = await self._store.all(
            select(*groups, project_of(SESSIONS.c.project_id), *_sums())
            .join(SESSIONS, SESSIONS.c.session_id == _H.session_id, isouter=True)
            .where(*_within(owner, start, end))
            .group_by(*groups)
        )
        data = [event for row in rows for event in _events(row)]
        data += await self._storage_events(owner, start, end)
        data.sort(key=lambda event: (event.bucket_start, -_size(event.event_info)))
        named = {event.session_id for event in data if event.session_id is not None}
        return BillingUsageResponse(data=data, sessions=await self._sessions(named))

    async def checkpoint_storage(
        self, owner: str | None, project_id: str | None
    ) -> CurrentCheckpointStorageUsageResponse:
        """Sum what checkpoints take now, by project and account."""
        expires_at = CHECKPOINTS.c.expires_at
        project = project_of(SESSIONS.c.project_id)
        statement = (
            select(
                CHECKPOINTS.c.owner,
                project,
                func.count().label("count"),
                func.sum(CHECKPOINTS.c.size_bytes).label("size"),
            )
            .join(TRAINING_RUNS, TRAINING_RUNS.c.run_id == CHECKPOINTS.c.run_id)
            .join(SESSIONS, SESSIONS.c.session_id == TRAINING_RUNS.c.session_id)
            .where(expires_at.is_(None) | (expires_at > self._clock.now()))
            .group_by(CHECKPOINTS.c.owner, project)
            .order_by(CHECKPOINTS.c.owner, project)
        )
        if owner is not None:
            statement = statement.where(CHECKPOINTS.c.owner == owner)
        if project_id is not None:
            statement = statement.where(project == project_id)
        return CurrentCheckpointStorageUsageResponse(
            data=[
                CurrentCheckpointStorageUsageItem(
                    project_id=row["project_id"],
                    org_user_urn=row["owner"],
                    checkpoint_count=row["count"],
                    size_bytes=row["size"],
                    size_gigabytes=row["size"] / GIGABYTE,
                )
                for row in await self._store.all(statement)
            ]
        )

    async def _storage_events(
        self, owner: str | None, start: datetime, end: datetime
    ) -> list[BillingUsageEvent]:
        spans, first, after = STORAGE_SPANS.c, int(start.timestamp()), int(end.timestamp())
        statement = (
            select(
                spans.owner,
                spans.size_bytes,
                spans.began_at,
                spans.ended_at,
                TRAINING_RUNS.c.session_id,
                TRAINING_RUNS.c.base_model,
                project_of(SESSIONS.c.project_id),
            )
            .join(TRAINING_RUNS, TRAINING_RUNS.c.run_id == spans.run_id)
            .join(SESSIONS, SESSIONS.c.session_id == TRAINING_RUNS.c.session_id)
            .where(spans.began_at < after, or_(spans.ended_at.is_(None), spans.ended_at > first))
        )
        if owner is not None:
            statement = statement.where(spans.owner == owner)
        found = await self._store.all(statement)
        return [
            _event(
                hour,
                StorageBillingEvent(gigabyte_hours=amount),
                owner=group[0],
                session_id=group[1],
                base_model=group[2],
                project_id=group[3],
            )
            for hour, group, amount in gigabyte_hours(
                found, start=first, end=after, now=self._clock.now()
            )
        ]

    async def _sessions(self, session_ids: set[str]) -> dict[str, BillingUsageSession]:
        found: dict[str, BillingUsageSession] = {}
        wanted = sorted(session_ids)
        for place in range(0, len(wanted), 500):
            rows = await self._store.all(
                select(SESSIONS.c.session_id, SESSIONS.c.user_metadata).where(
                    SESSIONS.c.session_id.in_(wanted[place : place + 500])
                )
            )
            for row in rows:
                found[row["session_id"]] = BillingUsageSession(user_metadata=row["user_metadata"])
        return found


def usage_csv(report: UsageReport, by: Sequence[UsageGroup]) -> str:
    """Write a report as CSV: the groups' columns, then the amounts. Moments are RFC 3339 in UTC."""
    text = io.StringIO()
    columns = [*dict.fromkeys(by), *FIELDS]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in report.rows:
        writer.writerow([_cell(getattr(row, name)) for name in columns])
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    text = str(value)
    # A spreadsheet takes such a text for a formula; names of base models are the users' words.
    return f"'{text}" if text[:1] in {"=", "+", "-", "@"} and isinstance(value, str) else text


def _sums() -> list[ColumnElement[Any]]:
    return [func.coalesce(func.sum(_H[name]), 0).label(name) for name in FIELDS]


def _within(owner: str | None, start: datetime, end: datetime) -> list[ColumnElement[bool]]:
    found = [_H.hour >= int(start.timestamp()), _H.hour < int(end.timestamp())]
    return found if owner is None else [*found, _H.owner == owner]


def _usage_row(row: RowMapping) -> UsageRow:
    moments = {name: _moment(row[name]) for name in ("hour", "day") if name in row}
    return UsageRow.model_validate({**row, **moments})


def _check_billing_window(start: datetime, end: datetime, now: float) -> None:
    first, after = start.timestamp(), end.timestamp()
    if first % HOUR_S or after % HOUR_S:
        raise invalid_fields("starting_on and ending_before must be whole UTC hours.")
    if after <= first:
        raise invalid_fields("ending_before must be after starting_on.")
    if after - first > MAX_BILLING_DAYS * DAY_S:
        raise invalid_fields(
            f"ending_before must be at most {MAX_BILLING_DAYS} days after starting_on: ask for "
            "several windows, or GET /api/v1/usage, which has no such limit."
        )
    if first > now:
        raise invalid_fields("starting_on must not be in the future.")


def _events(row: RowMapping) -> Iterator[BillingUsageEvent]:
    for info in _infos(row):
        yield _event(
            row["hour"],
            info,
            owner=row["owner"],
            session_id=row["session_id"] or None,
            base_model=row["base_model"],
            project_id=row["project_id"],
        )


def _infos(row: RowMapping) -> Iterable[BillingEventInfo]:
    if row["forward_backward_tokens"]:
        yield TrainingBillingEvent(token_count=row["forward_backward_tokens"], forward_only=False)
    if row["forward_tokens"]:
        yield TrainingBillingEvent(token_count=row["forward_tokens"], forward_only=True)
    if row["prefilled_tokens"]:
        yield SamplingPrefillBillingEvent(cached=False, token_count=row["prefilled_tokens"])
    if row["cached_tokens"]:
        yield SamplingPrefillBillingEvent(cached=True, token_count=row["cached_tokens"])
    if row["sampled_tokens"]:
        yield SamplingSampleBillingEvent(token_count=row["sampled_tokens"])
    if row["checkpoints"]:
        yield CheckpointBillingEvent(count=row["checkpoints"])


def _event(
    hour: int,
    info: BillingEventInfo,
    *,
    owner: str,
    session_id: str | None,
    base_model: str,
    project_id: str | None,
) -> BillingUsageEvent:
    return BillingUsageEvent(
        bucket_start=_moment(hour),
        bucket_end=_moment(hour + HOUR_S),
        base_model=base_model,
        user_id=owner,
        session_id=session_id,
        project_id=project_id,
        event_info=info,
    )


def _size(info: BillingEventInfo) -> float:
    return float(getattr(info, "token_count", 0))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
