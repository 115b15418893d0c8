"""The audit log: what was done with checkpoints, projects, accounts and keys, when and by whom.

Owns the events' names and their form. An event is on the disk before the request that caused it is
answered. Details hold ids and settings, never a key, a password or a name that a user chose for
something of another account. Kept for `audit_retention_s`.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import delete, insert, select

from tinkex.server.records.tables import AUDIT_LOG
from tinkex.server.records.work import current_work
from tinkex.types import AuditLogEntry, AuditLogResponse

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from tinkex._clock import Clock
    from tinkex.server.storage.blobs import CheckpointKey
    from tinkex.server.storage.store import Store

Resource = Literal["checkpoints", "projects", "teams", "organizations"]
RESOURCES = get_args(Resource)
"""As the official API groups events. There are no teams here; accounts and keys are with the
organisation."""
MAX_ENTRIES = 20_000
"""Of one answer; of a day with more, the newest."""


class AuditEvent(Enum):
    """What is noted: (the group, the event's name)."""

    CHECKPOINT_CREATED = ("checkpoints", "checkpoint_create")
    CHECKPOINT_READ = ("checkpoints", "checkpoint_read")
    CHECKPOINT_PUBLISHED = ("checkpoints", "checkpoint_publish")
    CHECKPOINT_UNPUBLISHED = ("checkpoints", "checkpoint_unpublish")
    CHECKPOINT_TTL_SET = ("checkpoints", "checkpoint_ttl_set")
    CHECKPOINT_DELETED = ("checkpoints", "checkpoint_delete")
    CHECKPOINT_EXPIRED = ("checkpoints", "checkpoint_expire")
    SESSION_ASSIGNED = ("projects", "project_session_assign")
    ACCOUNT_CREATED = ("organizations", "account_create")
    ACCOUNT_CHANGED = ("organizations", "account_change")
    KEY_CREATED = ("organizations", "key_create")
    KEY_REVOKED = ("organizations", "key_revoke")

    @property
    def resource(self) -> str:
        """The group that it is found under."""
        return self.value[0]

    @property
    def event(self) -> str:
        """Its name on the wire."""
        return self.value[1]


class AuditLog:
    """The audit log of one server.

    Args:
        store: gives the connections.
        clock: tells when something was done.
    """

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def note(
        self,
        event: AuditEvent,
        *,
        owner: str,
        key_id: str | None,
        **details: str | int | bool | list[str] | None,
    ) -> None:
        """Write down that something was done.

        Args:
            event: what.
            owner: the account that did it, and can read the event; of what the server did itself,
                the account whose thing it was.
            key_id: the key that did it; None for the server itself.
            details: what it was about.
        """
        async with self._store.begin() as connection:
            await connection.execute(
                insert(AUDIT_LOG).values(
                    at=self._clock.now(),
                    owner=owner,
                    key_id=key_id,
                    resource=event.resource,
                    event=event.event,
                    details=details,
                )
            )

    async def note_checkpoint(
        self,
        event: AuditEvent,
        key: CheckpointKey,
        *,
        owner: str,
        key_id: str | None,
        **details: str | int | bool | list[str] | None,
    ) -> None:
        """Write down that something was done with a checkpoint; arguments as of `note`."""
        await self.note(
            event,
            owner=owner,
            key_id=key_id,
            training_run_id=key.run_id,
            tinker_path=key.path,
            **details,
        )

    async def note_work(
        self, event: AuditEvent, key: CheckpointKey, **details: str | int | bool | None
    ) -> None:
        """Write down what the request that is being carried out did with a checkpoint."""
        work = current_work.get()
        if work is not None:
            source = work.source
            await self.note_checkpoint(
                event, key, owner=source.owner, key_id=source.key_id, **details
            )

    async def read(
        self, owner: str | None, *, resource: str | None, day: date | None
    ) -> AuditLogResponse:
        """Return what was done on one UTC day, oldest first.

        Args:
            owner: with whose things; None is everybody's.
            resource: one group of `RESOURCES`; None is all.
            day: which day; None is today.
        """
        on = day or datetime.fromtimestamp(self._clock.now(), UTC).date()
        start = datetime.combine(on, time(), UTC)
        log = AUDIT_LOG.c
        statement = select(AUDIT_LOG).where(
            log.at >= start.timestamp(), log.at < (start + timedelta(days=1)).timestamp()
        )
        if owner is not None:
            statement = statement.where(log.owner == owner)
        if resource is not None:
            statement = statement.where(log.resource == resource)
        async with self._store.begin() as connection:
            found = await connection.execute(
                statement.order_by(log.number.desc()).limit(MAX_ENTRIES)
            )
            rows = found.mappings().all()
        return AuditLogResponse(entries=[_entry(row) for row in reversed(rows)])

    async def prune(self, before: float) -> None:
        """Erase what was done before a moment, in unix seconds."""
        async with self._store.begin() as connection:
            await connection.execute(delete(AUDIT_LOG).where(AUDIT_LOG.c.at < before))


def _entry(row: RowMapping) -> AuditLogEntry:
    details: dict[str, Any] = {"account": row["owner"], "key_id": row["key_id"], **row["details"]}
    return AuditLogEntry(
        timestamp=datetime.fromtimestamp(row["at"], UTC),
        event=row["event"],
        event_details=details,
        model_id=details.get("training_run_id"),
        tinker_path=details.get("tinker_path"),
        purpose=details.get("purpose"),
    )
