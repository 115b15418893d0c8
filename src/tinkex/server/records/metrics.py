"""Metrics of training, as they are asked for.

Owns reading them, page by page. They are written by the ledger, kept for `metrics_retention_s`
after they were told, and thinned above `max_metric_rows` of one run.
"""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from tinkex.server.records.tables import TRAINING_METRICS
from tinkex.types import TrainingMetrics, TrainingMetricsResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping

    from tinkex.server.records.ledger import Ledger
    from tinkex.server.records.store import RecordStore

_COLUMNS = ("step", "operation", "time", "tokens")


class Metrics:
    """Reads the metrics of training runs."""

    def __init__(self, ledger: Ledger, store: RecordStore) -> None:
        self._ledger = ledger
        self._store = store

    async def page(self, run_id: str, *, cursor: int, limit: int) -> TrainingMetricsResponse:
        """Return what a run told after `cursor`, oldest first; 0 is the beginning."""
        await self._ledger.settle()
        rows = await self._store.all(
            select(TRAINING_METRICS)
            .where(TRAINING_METRICS.c.run_id == run_id, TRAINING_METRICS.c.number > cursor)
            .order_by(TRAINING_METRICS.c.number)
            .limit(limit + 1)
        )
        page = rows[:limit]
        return TrainingMetricsResponse(
            training_run_id=run_id,
            metrics=[_told(row) for row in page],
            next_cursor=page[-1]["number"] if len(rows) > limit else None,
        )


def metrics_csv(page: TrainingMetricsResponse) -> str:
    """Write metrics as CSV: a column for every name that any of the rows has."""
    names = sorted({name for row in page.metrics for name in row.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *names])
    for row in page.metrics:
        time = row.time.isoformat().replace("+00:00", "Z")
        values = [row.metrics.get(name) for name in names]
        writer.writerow([row.step, row.operation, time, row.tokens, *values])
    return text.getvalue()


def _told(row: RowMapping) -> TrainingMetrics:
    return TrainingMetrics(
        step=row["step"],
        operation=row["operation"],
        time=datetime.fromtimestamp(row["at"], UTC),
        tokens=row["tokens"],
        metrics=_finite(row["metrics"]),
    )


def _finite(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
