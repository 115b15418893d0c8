"""What clients report of themselves. The server need not read it."""

from __future__ import annotations

from typing import Any, Literal

from tinkex.types._model import WireRequest, WireResponse

TelemetryEvent = dict[str, Any]


class TelemetrySendRequest(WireRequest):
    """A batch of events."""

    events: list[TelemetryEvent]
    platform: str
    sdk_version: str
    session_id: str
    process_uuid: str


class TelemetryResponse(WireResponse):
    """Taken."""

    status: Literal["accepted"] = "accepted"
