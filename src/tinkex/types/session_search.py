"""Finding sessions: what is asked for, what is found, how a session ended."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field

from tinkex.types._model import Int, TextMap, WireRequest, WireResponse, absent

ClientSessionFinishReasonType = Literal["success", "errored", "interrupted"]


class OwnSearchOwner(WireRequest):
    """The caller's own sessions."""

    type: Literal["own"] = "own"


class AccessibleSearchOwner(WireRequest):
    """Every session the caller may see."""

    type: Literal["accessible"] = "accessible"


class UserSearchOwner(WireRequest):
    """The sessions of these users, one to ten."""

    type: Literal["user"] = "user"
    owner_urns: list[str] = Field(min_length=1, max_length=10)


SearchOwner = Annotated[
    OwnSearchOwner | AccessibleSearchOwner | UserSearchOwner, Field(discriminator="type")
]


class ActiveSessionStatusQuery(WireRequest):
    """Sessions that go on."""

    type: Literal["active"] = "active"


class CancelledSessionStatusQuery(WireRequest):
    """Sessions ended from the console."""

    type: Literal["cancelled"] = "cancelled"


class FailedSessionStatusQuery(WireRequest):
    """Sessions that something in them failed."""

    type: Literal["failed"] = "failed"


class ClientFinishedSessionStatusQuery(WireRequest):
    """Sessions whose client said that it was done, for any of these reasons or whatever reason."""

    type: Literal["client_finished"] = "client_finished"
    reasons: list[ClientSessionFinishReasonType] | None = Field(
        default=None, min_length=1, exclude_if=lambda value: value is None
    )


SessionStatusQuery = Annotated[
    ActiveSessionStatusQuery
    | CancelledSessionStatusQuery
    | FailedSessionStatusQuery
    | ClientFinishedSessionStatusQuery,
    Field(discriminator="type"),
]


def _read(moment: Any) -> Any:
    """Read a date that is text; nothing else is converted."""
    return datetime.fromisoformat(moment) if isinstance(moment, str) else moment


class SessionSearchCursor(WireRequest):
    """Where the next page starts; comes back as it was given."""

    last_created_at: Annotated[AwareDatetime, BeforeValidator(_read)]
    """Text, too: a cursor that was kept as JSON is read again."""
    last_session_id: str


class SessionSearchRequest(WireRequest):
    """Which sessions. Everything given must hold, but a session id or a name is enough of the two.

    Attributes:
        session_id: exactly this one.
        project_ids: in any of these projects.
        user_metadata: every pair is in the session's own.
        display_name: every word is in its name, in any letter case.
        owner: whose.
        statuses: in any of these states.
        limit: sessions of a page, 1 to 200.
        cursor: `next_cursor` of the page before.
    """

    session_id: str | None = absent()
    project_ids: list[str] | None = absent()
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = Field(
        default=None, min_length=1, exclude_if=lambda value: value is None
    )
    owner: SearchOwner = OwnSearchOwner()
    statuses: list[SessionStatusQuery] | None = Field(
        default=None, min_length=1, exclude_if=lambda value: value is None
    )
    limit: Annotated[Int, Field(ge=1, le=200)] = 50
    cursor: SessionSearchCursor | None = absent()


class AssignSessionProjectRequest(WireRequest):
    """Put a session into a project."""

    project_id: str


class SessionFailedRequestReason(WireResponse):
    """A request failed it."""

    type: Literal["request"] = "request"
    request_id: str
    request_type: str


class SessionFailedTrainingRunReason(WireResponse):
    """A training run failed it."""

    type: Literal["training_run"] = "training_run"
    training_run_id: str


class SessionFailedSamplingSessionReason(WireResponse):
    """A sampling session failed it."""

    type: Literal["sampling_session"] = "sampling_session"
    sampling_session_id: str


SessionFailedReason = Annotated[
    SessionFailedRequestReason
    | SessionFailedTrainingRunReason
    | SessionFailedSamplingSessionReason,
    Field(discriminator="type"),
]


class SessionFailed(WireResponse):
    """Something in it failed it."""

    type: Literal["failed"] = "failed"
    category: Literal["user", "internal"]
    reason: SessionFailedReason
    message: str


class SessionCancelled(WireResponse):
    """Somebody ended it from outside."""

    type: Literal["cancelled"] = "cancelled"
    detail: str | None = absent()


class ClientSessionFinishSuccess(WireResponse):
    """The program ended well."""

    type: Literal["success"] = "success"


class ClientSessionFinishErrored(WireResponse):
    """The program failed."""

    type: Literal["errored"] = "errored"


class ClientSessionFinishInterrupted(WireResponse):
    """Somebody interrupted the program."""

    type: Literal["interrupted"] = "interrupted"


ClientSessionFinishReason = Annotated[
    ClientSessionFinishSuccess | ClientSessionFinishErrored | ClientSessionFinishInterrupted,
    Field(discriminator="type"),
]


class ClientSessionFinished(WireResponse):
    """Its client said that it was done."""

    type: Literal["client_finished"] = "client_finished"
    reason: ClientSessionFinishReason
    detail: str | None = absent()


class SessionActive(WireResponse):
    """It goes on."""

    type: Literal["active"] = "active"


SessionStatus = Annotated[
    SessionFailed | SessionCancelled | ClientSessionFinished | SessionActive,
    Field(discriminator="type"),
]


class SessionSummary(WireResponse):
    """One session that was found."""

    session_id: str
    created_at: datetime
    owner: str
    project_id: str
    status: SessionStatus | None = absent()
    """None when it neither ended nor is known to go on."""
    checkpoints_count: int
    display_name: str | None = absent()
    user_metadata: TextMap | None = absent()
    checkpoint_storage_bytes: int | None = absent()


class SessionSearchResponse(WireResponse):
    """A page of sessions, newest first."""

    sessions: list[SessionSummary]
    next_cursor: SessionSearchCursor | None = absent()


class TraceExportResponse(WireResponse):
    """How far the export of a session's trace is."""

    status: Literal["pending", "ready", "failed"]
    url: str | None = absent()
    error: str | None = absent()
