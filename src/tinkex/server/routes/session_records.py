"""Sessions as records: finding them, their projects, their traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse
from starlette.routing import Route

from tinkex.server.files.downloads import DOWNLOADS
from tinkex.server.openapi.describe import JSON, Media, described
from tinkex.server.records.audit import AuditEvent
from tinkex.server.refusal import not_found, unauthorized
from tinkex.server.routes.messages import (
    caller_of,
    json_reply,
    message_reply,
    owner_of,
    read_json,
)
from tinkex.server.routes.sharing import SignatureQuery
from tinkex.types import AssignSessionProjectRequest, SessionSearchRequest, TraceExportResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services

TRACES = "/downloads/traces/{session_id}.pftrace"


class SessionRecordRoutes:
    """Routes about sessions, open or ended."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes; they stand before those that take a path's tail."""
        return [
            Route("/sessions/search", self.search, methods=["POST"]),
            Route("/sessions/{session_id}/project", self.assign, methods=["PUT"]),
            Route("/sessions/{session_id}/trace_export", self.export_trace, methods=["GET"]),
            Route(TRACES, self.trace, methods=["GET"]),
        ]

    async def search(self, request: Request) -> Response:
        """Find sessions of the caller's account, newest first."""
        message, _ = await read_json(request, SessionSearchRequest)
        return message_reply(await self._s.records.search.search(owner_of(request), message))

    async def assign(self, request: Request) -> Response:
        """Put a session into a project, which exists as soon as a session names it."""
        message, _ = await read_json(request, AssignSessionProjectRequest)
        caller, session_id = caller_of(request), request.path_params["session_id"]
        before = await self._s.records.search.assign(caller.owner, session_id, message.project_id)
        await self._s.records.audit.note(
            AuditEvent.SESSION_ASSIGNED,
            owner=caller.owner,
            key_id=caller.key_id,
            session_id=session_id,
            project_id=message.project_id,
            previous_project_id=before,
        )
        return json_reply({})

    async def export_trace(self, request: Request) -> Response:
        """Give the address of a session's timeline, which needs no key; it is made when fetched."""
        session_id = request.path_params["session_id"]
        if await self._s.store.session(owner_of(request), session_id) is None:
            raise not_found(f"There is no session {session_id!r} with this key.")
        if not await self._s.records.traces.has(session_id):
            days = self._s.config.trace_retention_s / 86_400
            error = f"No request of this session has ended, or not in the last {days:g} days."
            return message_reply(TraceExportResponse(status="failed", error=error))
        here = f"{request.url.scheme}://{request.url.netloc}"
        url, _ = self._s.downloads.signed.sign(here, _path_of(session_id), "trace")
        return message_reply(TraceExportResponse(status="ready", url=url))

    @described(response=(Media(JSON),), query=SignatureQuery)
    async def trace(self, request: Request) -> Response:
        """Send a session's timeline to whoever has its signed address."""
        session_id = request.path_params["session_id"]
        if not self._s.downloads.signed.accepts(_path_of(session_id), request.query_params):
            raise unauthorized(
                "This address is not signed, or its signature has ended: export the trace again."
            )
        return StreamingResponse(self._s.records.traces.chunks(session_id), media_type=JSON)


def _path_of(session_id: str) -> str:
    return f"{DOWNLOADS}/traces/{session_id}.pftrace"
