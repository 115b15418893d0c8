"""Sessions: begin, stay alive, finish, look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.openapi.describe import described
from tinkex.server.openapi.strict import read_query
from tinkex.server.records.projects import check_project
from tinkex.server.refusal import not_found
from tinkex.server.routes.messages import (
    caller_of,
    json_reply,
    message_reply,
    owner_of,
    read_json,
)
from tinkex.server.routes.queries import Page, ScopeQuery
from tinkex.server.storage.store import SessionRow
from tinkex.types import (
    CreateSessionRequest,
    CreateSessionResponse,
    FinishSessionRequest,
    GetSessionResponse,
    ListSessionsResponse,
    SessionHeartbeatRequest,
    SessionHeartbeatResponse,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


class SessionsQuery(ScopeQuery, Page):
    """Which sessions to list."""


class SessionRoutes:
    """Routes about sessions."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/create_session", self.create, methods=["POST"]),
            Route("/session_heartbeat", self.heartbeat, methods=["POST"]),
            Route("/sessions", self.list, methods=["GET"]),
            Route("/sessions/{session_id}", self.get, methods=["GET"]),
            Route("/sessions/{session_id}/finish", self.finish, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Begin a session."""
        message, _ = await read_json(request, CreateSessionRequest)
        if message.project_id is not None:
            check_project(message.project_id)
        caller = caller_of(request)
        session = self._s.sessions.create(caller.owner, key_id=caller.key_id)
        await self._s.store.add_session(
            SessionRow(
                session_id=session.session_id,
                owner=session.owner,
                key_id=session.key_id,
                created_at=self._s.clock.now(),
                sdk_version=message.sdk_version,
                project_id=message.project_id,
                display_name=message.display_name,
                tags=list(message.tags),
                user_metadata=message.user_metadata,
            )
        )
        return message_reply(CreateSessionResponse(session_id=session.session_id))

    async def heartbeat(self, request: Request) -> Response:
        """Keep a session alive; 410 tells the client that it is over."""
        message, _ = await read_json(request, SessionHeartbeatRequest)
        self._s.sessions.heartbeat(owner_of(request), message.session_id)
        return message_reply(SessionHeartbeatResponse())

    async def finish(self, request: Request) -> Response:
        """End a session and free what belongs to it."""
        message, _ = await read_json(request, FinishSessionRequest)
        self._s.sessions.finish(
            owner_of(request),
            request.path_params["session_id"],
            reason=message.reason.type,
            detail=message.detail,
        )
        return json_reply({})

    @described(query=SessionsQuery)
    async def list(self, request: Request) -> Response:
        """List the owner's sessions, newest first."""
        page = read_query(request, SessionsQuery)
        sessions = await self._s.store.sessions(
            owner_of(request), limit=page.limit, offset=page.offset
        )
        return message_reply(ListSessionsResponse(sessions=sessions))

    @described(query=ScopeQuery)
    async def get(self, request: Request) -> Response:
        """Show a session's training runs and samplers, also when it has ended."""
        session_id = request.path_params["session_id"]
        row = await self._s.store.session(owner_of(request), session_id)
        if row is None:
            raise not_found(f"There is no session {session_id!r} with this key.")
        runs, samplers = await self._s.store.session_contents(session_id)
        return message_reply(
            GetSessionResponse(
                training_run_ids=runs,
                sampler_ids=samplers,
                user_metadata=row["user_metadata"],
                display_name=row["display_name"],
            )
        )
