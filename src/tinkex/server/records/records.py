"""Everything that is written down, put together, and how long it stays.

Owns which part gets which, and erasing what is old: once a day, and at the start.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tinkex.server.records.audit import AuditEvent, AuditLog
from tinkex.server.records.ledger import Ledger
from tinkex.server.records.metrics import Metrics
from tinkex.server.records.reports import Reports
from tinkex.server.records.search import SessionSearch
from tinkex.server.records.store import RecordStore
from tinkex.server.records.trace import Traces

if TYPE_CHECKING:
    from tinkex.server.services import Services
    from tinkex.server.storage.store import CheckpointRow

PRUNE_EVERY_S = 86_400.0


class Records:
    """The records of one server."""

    def __init__(self, services: Services) -> None:
        self._s = services
        self._store = RecordStore(
            services.store,
            max_metric_rows=services.config.limits.max_metric_rows,
            max_request_rows=services.config.limits.max_request_rows,
        )
        self.ledger = Ledger(
            self._store,
            clock=services.clock,
            timers=services.timers,
            tasks=services.tasks,
            on_fault=services.fault,
        )
        self.reports = Reports(self.ledger, self._store, clock=services.clock)
        self.metrics = Metrics(self.ledger, self._store)
        self.traces = Traces(self.ledger, self._store)
        self.audit = AuditLog(services.store, clock=services.clock)
        services.checkpoints.on_expired = self._note_expiry
        self.search = SessionSearch(services.store, clock=services.clock)

    async def start(self) -> None:
        """Erase what is old, and begin to do so every day; a disk that refuses it stops neither."""
        await asyncio.wait({self._begin_erasing()})

    def _begin_erasing(self) -> asyncio.Task[None]:
        self._s.timers.call_later(PRUNE_EVERY_S, self._begin_erasing)
        return self._s.tasks.spawn(self._erase_old(), name="erase old records")

    async def _erase_old(self) -> None:
        now = self._s.clock.now()
        await self._store.prune(
            requests_before=now - self._s.config.trace_retention_s,
            metrics_before=now - self._s.config.metrics_retention_s,
        )
        await self.audit.prune(now - self._s.config.audit_retention_s)

    async def _note_expiry(self, row: CheckpointRow) -> None:
        await self.audit.note_checkpoint(
            AuditEvent.CHECKPOINT_EXPIRED, row.key, owner=row.owner, key_id=None
        )
