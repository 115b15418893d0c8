"""What clients report of themselves. The server need not read it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from tinkex.types._model import WireRequest, WireResponse, absent

EventType = Literal["SESSION_START", "SESSION_END", "UNHANDLED_EXCEPTION", "GENERIC_EVENT"]
Severity = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class _Event(WireRequest):
    event: EventType
    event_id: str
    event_session_index: int
    """Counts the events of a session, from 0: a server sees whether one is missing."""
    severity: Severity
    timestamp: datetime


class SessionStartEvent(_Event):
    """A session began."""

    event: EventType = "SESSION_START"


class SessionEndEvent(_Event):
    """A session ended."""

    event: EventType = "SESSION_END"
    duration: str
    """`h:mm:ss.ffffff`."""


class UnhandledExceptionEvent(_Event):
    """A call failed through no fault of the caller."""

    event: EventType = "UNHANDLED_EXCEPTION"
    error_message: str
    error_type: str
    traceback: str | None = absent()


class GenericEvent(_Event):
    """Anything else."""

    event: EventType = "GENERIC_EVENT"
    event_name: str
    """One of few: servers count by it."""
    event_data: dict[str, Any] = Field(default_factory=dict)


TelemetryEvent = SessionStartEvent | SessionEndEvent | UnhandledExceptionEvent | GenericEvent


class TelemetrySendRequest(WireRequest):
    """A batch of events."""

    events: list[TelemetryEvent]
    platform: str
    sdk_version: str
    session_id: str
    process_uuid: str


TelemetryBatch = TelemetrySendRequest
"""The official name of what waits to be sent."""


class TelemetryResponse(WireResponse):
    """Taken."""

    status: Literal["accepted"] = "accepted"
