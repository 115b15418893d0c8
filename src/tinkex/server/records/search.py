"""Finding sessions, and putting them into projects.

Owns what a search means, and how this server's states are told in the official API's words: a
session that fell silent, or that a server which stopped left behind, was ended from outside, which
is `cancelled`. None is `failed`: a request that fails ends no session here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, false, func, or_, select, tuple_, update

from tinkex.server.records.projects import check_project, project_of
from tinkex.server.refusal import not_found
from tinkex.server.sessions import SessionEnd
from tinkex.server.storage.store import ACTIVE
from tinkex.server.storage.tables import CHECKPOINTS, SESSIONS, TRAINING_RUNS
from tinkex.types import (
    ClientSessionFinished,
    SessionActive,
    SessionCancelled,
    SessionSearchCursor,
    SessionSearchResponse,
    SessionSummary,
)

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, RowMapping

    from tinkex._clock import Clock
    from tinkex.server.storage.store import Store
    from tinkex.types import SessionSearchRequest
    from tinkex.types.session_search import SearchOwner, SessionStatus, SessionStatusQuery

_FINISHED = SessionEnd.FINISHED.value
_ENDED_FROM_OUTSIDE = {
    SessionEnd.EXPIRED.value: "its client was silent for too long",
    "lost": "the server was stopped while it was open",
}
_S = SESSIONS.c
_CREATED = func.round(_S.created_at * 1_000_000)
"""In microseconds, as a cursor has it: what it does not tell apart must not order sessions."""


class SessionSearch:
    """Searches the sessions of a server."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def search(self, owner: str, request: SessionSearchRequest) -> SessionSearchResponse:
        """Return a page of the account's sessions, newest first."""
        statement = (
            select(
                _S.session_id,
                _S.owner,
                _S.created_at,
                _S.status,
                _S.reason,
                _S.detail,
                _S.display_name,
                _S.user_metadata,
                project_of(_S.project_id),
            )
            .where(_S.owner == owner, *_conditions(owner, request))
            .order_by(_CREATED.desc(), _S.session_id.desc())
            .limit(request.limit + 1)
        )
        async with self._store.begin() as connection:
            rows = (await connection.execute(statement)).mappings().all()
            page = rows[: request.limit]
            ids = [row["session_id"] for row in page]
            found = await connection.execute(_checkpoints_of(ids, now=self._clock.now()))
            sizes = {row["session_id"]: (row["count"], row["size"]) for row in found.mappings()}
        last = page[-1] if len(rows) > request.limit else None
        return SessionSearchResponse(
            sessions=[_summary(row, *sizes.get(row["session_id"], (0, 0))) for row in page],
            next_cursor=None
            if last is None
            else SessionSearchCursor(
                last_created_at=_moment(last["created_at"]), last_session_id=last["session_id"]
            ),
        )

    async def assign(self, owner: str, session_id: str, project_id: str) -> str:
        """Put a session into a project; returns the one that it was in.

        Raises:
            Refusal: 404 when the account has no such session, 422 for a name that is none.
        """
        check_project(project_id)
        mine = and_(_S.session_id == session_id, _S.owner == owner)
        async with self._store.begin() as connection:
            before = await connection.scalar(select(project_of(_S.project_id)).where(mine))
            if before is None:
                raise not_found(f"There is no session {session_id!r} with this key.")
            await connection.execute(update(SESSIONS).where(mine).values(project_id=project_id))
        return str(before)


def _conditions(owner: str, request: SessionSearchRequest) -> list[ColumnElement[bool]]:
    found = [_owned(owner, request.owner)]
    words = (request.display_name or "").casefold().split()
    name = func.casefold(_S.display_name)
    chosen = [_S.session_id == request.session_id] if request.session_id is not None else []
    if words:
        chosen.append(and_(*(name.contains(word, autoescape=True) for word in words)))
    if chosen:
        found.append(or_(*chosen))  # an id or a name is enough of the two
    if request.project_ids is not None:
        found.append(project_of(_S.project_id).in_(request.project_ids))
    if request.statuses is not None:
        found.append(or_(*(_status_is(one) for one in request.statuses)))
    if request.cursor is not None:
        created = round(request.cursor.last_created_at.timestamp() * 1e6)
        place = created, request.cursor.last_session_id
        found.append(tuple_(_CREATED, _S.session_id) < place)
    return found + [_has(name, value) for name, value in request.user_metadata.items()]


def _owned(owner: str, wanted: SearchOwner) -> ColumnElement[bool]:
    """Whose: an account can see its own alone, so `accessible` is the same as `own`."""
    if wanted.type == "user" and owner not in wanted.owner_urns:
        return false()
    return _S.owner == owner


def _has(name: str, value: str) -> ColumnElement[bool]:
    """Whether a pair is in a session's metadata."""
    pairs = func.json_each(_S.user_metadata).table_valued("key", "value", name="pairs")
    return select(pairs.c.key).where(pairs.c.key == name, pairs.c.value == value).exists()


def _status_is(wanted: SessionStatusQuery) -> ColumnElement[bool]:
    if wanted.type == "active":
        return _S.status == ACTIVE
    if wanted.type == "cancelled":
        return _S.status.in_(_ENDED_FROM_OUTSIDE)
    if wanted.type == "failed":
        return false()
    reasons = wanted.reasons
    finished = _S.status == _FINISHED
    return finished if reasons is None else and_(finished, _reason().in_(reasons))


def _reason() -> ColumnElement[Any]:
    """Why a client finished; the session of a copy of weights has none, and succeeded."""
    return func.coalesce(_S.reason, "success")


def _checkpoints_of(session_ids: list[str], *, now: float) -> Any:
    expires_at = CHECKPOINTS.c.expires_at
    return (
        select(
            TRAINING_RUNS.c.session_id,
            func.count().label("count"),
            func.sum(CHECKPOINTS.c.size_bytes).label("size"),
        )
        .join(CHECKPOINTS, CHECKPOINTS.c.run_id == TRAINING_RUNS.c.run_id)
        .where(
            TRAINING_RUNS.c.session_id.in_(session_ids),
            expires_at.is_(None) | (expires_at > now),
        )
        .group_by(TRAINING_RUNS.c.session_id)
    )


def _summary(row: RowMapping, checkpoints: int, size: int) -> SessionSummary:
    return SessionSummary(
        session_id=row["session_id"],
        created_at=_moment(row["created_at"]),
        owner=row["owner"],
        project_id=row["project_id"],
        status=_status(row),
        checkpoints_count=checkpoints,
        display_name=row["display_name"],
        user_metadata=row["user_metadata"],
        checkpoint_storage_bytes=size,
    )


def _status(row: RowMapping) -> SessionStatus:
    if row["status"] == ACTIVE:
        return SessionActive()
    if row["status"] in _ENDED_FROM_OUTSIDE:
        return SessionCancelled(detail=_ENDED_FROM_OUTSIDE[row["status"]])
    reason = {"type": row["reason"] or "success"}
    return ClientSessionFinished.model_validate({"reason": reason, "detail": row["detail"]})


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
