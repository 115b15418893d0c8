"""`AdminClient`: what was done and used in the name of an organisation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Self, get_args

from tinkex import types
from tinkex.client.connection import Connection, connect
from tinkex.client.deprecated import awaited_twin
from tinkex.client.future import APIFuture
from tinkex.client.rest import ask
from tinkex.client.runtime import Runtime
from tinkex.client.telemetry import Telemetry
from tinkex.errors import InputError
from tinkex.types.records import AuditEventType, UsageGroup
from tinkex.wire import endpoints

__all__ = ["AdminClient", "AuditEventType"]

_EVENT_TYPES = get_args(AuditEventType)


class AdminClient:
    """Reads the audit log and the usage; makes no session. Arguments as of `RestClient`."""

    def __init__(
        self,
        _holder: Connection | None = None,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_retries: int | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._connection = connect(_holder, base_url, api_key, runtime, max_retries)
        self._owns_connection = _holder is None

    def get_audit_log(
        self, event_type: AuditEventType = "all", day: date | None = None
    ) -> APIFuture[types.AuditLogResponse]:
        """Read what was done, oldest first.

        Args:
            event_type: of what kind.
            day: on which UTC day; None is as far back as the server tells.
        """
        if event_type not in _EVENT_TYPES:
            raise InputError(
                f"event_type must be one of {', '.join(_EVENT_TYPES)}, not {event_type!r}."
            )
        if day is not None and not isinstance(day, date):
            raise InputError(f"day must be a date, not {day!r}.")
        shown = day.date() if isinstance(day, datetime) else day
        return ask(
            self._connection,
            endpoints.GET_AUDIT_LOG,
            "AdminClient.get_audit_log",
            query={"event_type": event_type, "day": shown and shown.isoformat()},
        )

    def get_billing_usage(
        self, starting_on: datetime | str, ending_before: datetime | str
    ) -> APIFuture[types.BillingUsageResponse]:
        """Read what was used, by the hour.

        Args:
            starting_on: first hour: a datetime with a time zone, or RFC 3339 text.
            ending_before: the hour after the last one.
        """
        return ask(
            self._connection,
            endpoints.GET_BILLING_USAGE,
            "AdminClient.get_billing_usage",
            query={
                "starting_on": _rfc3339(starting_on, "starting_on"),
                "ending_before": _rfc3339(ending_before, "ending_before"),
            },
        )

    def get_current_checkpoint_storage_usage(
        self, project_id: str | None = None
    ) -> APIFuture[types.CurrentCheckpointStorageUsageResponse]:
        """Read what checkpoints take now; of one project, or of all."""
        return ask(
            self._connection,
            endpoints.GET_CHECKPOINT_STORAGE_USAGE,
            "AdminClient.get_current_checkpoint_storage_usage",
            query={"project_id": project_id},
        )

    def get_usage(
        self,
        starting_on: datetime | str | None = None,
        ending_before: datetime | str | None = None,
        *,
        by: Sequence[UsageGroup] = ("day", "key"),
    ) -> APIFuture[types.UsageReport]:
        """Sum tokens, checkpoints and engine seconds; `tinkex serve` has it.

        Args:
            starting_on: first moment, with a time zone; None is 30 days before the last.
            ending_before: the moment after the last; None is an hour from now.
            by: what makes a row: any of hour, day, account, key, session, source, base_model.
        """
        unknown = [name for name in by if name not in get_args(UsageGroup)]
        if isinstance(by, str) or unknown:
            raise InputError(f"by must be a list of {', '.join(get_args(UsageGroup))}; got {by!r}.")
        return ask(
            self._connection,
            endpoints.GET_USAGE,
            "AdminClient.get_usage",
            query={
                "starting_on": starting_on and _rfc3339(starting_on, "starting_on"),
                "ending_before": ending_before and _rfc3339(ending_before, "ending_before"),
                "by": ",".join(by),
            },
        )

    def get_telemetry(self) -> Telemetry | None:
        """Return what reports to the server; None when it is switched off."""
        return self._connection.telemetry

    def close(self) -> None:
        """Close the connections, unless they are another client's. Idempotent."""
        if self._owns_connection:
            self._connection.close()

    def __enter__(self) -> Self:
        """Use the client in a `with` block, which closes it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def __repr__(self) -> str:
        """Name the server; the key stays out."""
        return f"AdminClient({self._connection.config.base_url!r})"

    get_audit_log_async = awaited_twin(get_audit_log)
    get_billing_usage_async = awaited_twin(get_billing_usage)
    get_current_checkpoint_storage_usage_async = awaited_twin(get_current_checkpoint_storage_usage)


def _rfc3339(value: datetime | str, name: str) -> str:
    """Write a moment as the wire has it: UTC, with a Z."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InputError(f"{name} {value!r} is no RFC 3339 date and time.") from error
    if not isinstance(moment, datetime):
        raise InputError(f"{name} must be a datetime or RFC 3339 text, not {value!r}.")
    if moment.tzinfo is None:
        raise InputError(f"{name} needs a time zone: datetime(..., tzinfo=UTC), or text with a Z.")
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
