"""Sessions: a client's life on the server."""

from __future__ import annotations

from typing import Any, Literal

from tinkex.types._model import WireRequest, WireResponse, absent


class CreateSessionRequest(WireRequest):
    """Begin a session."""

    tags: list[str]
    user_metadata: dict[str, Any] | None = absent()
    sdk_version: str
    project_id: str | None = absent()
    display_name: str | None = absent()
    type: Literal["create_session"] = "create_session"


class CreateSessionResponse(WireResponse):
    """The session's id; a message, if there is one, is for the user's log."""

    type: Literal["create_session"] = "create_session"
    info_message: str | None = absent()
    warning_message: str | None = absent()
    error_message: str | None = absent()
    session_id: str


class SessionHeartbeatRequest(WireRequest):
    """Say that the client still lives."""

    session_id: str
    type: Literal["session_heartbeat"] = "session_heartbeat"


class SessionHeartbeatResponse(WireResponse):
    """Heard."""

    type: Literal["session_heartbeat"] = "session_heartbeat"


class SessionFinishReason(WireRequest):
    """How the client's program ended."""

    type: Literal["success", "errored", "interrupted"]


class FinishSessionRequest(WireRequest):
    """End a session. `detail` is null when there is none, never absent."""

    reason: SessionFinishReason
    detail: str | None = None


class GetSessionResponse(WireResponse):
    """What a session made."""

    training_run_ids: list[str]
    sampler_ids: list[str]
    user_metadata: dict[str, Any] | None = absent()
    display_name: str | None = absent()


class ListSessionsResponse(WireResponse):
    """Session ids, newest first."""

    sessions: list[str]
