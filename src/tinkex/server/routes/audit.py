"""The audit log, a day at a time."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from starlette.routing import Route

from tinkex.server.openapi.describe import Query, described
from tinkex.server.openapi.strict import read_query
from tinkex.server.routes.messages import caller_of, message_reply
from tinkex.server.routes.queries import WrittenOut

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


class AuditQuery(Query):
    """Which events."""

    event_type: Literal["all", "checkpoints", "projects", "teams", "organizations"] = "all"
    """Of what; accounts and keys are under `organizations`."""
    day: Annotated[date, WrittenOut, Field(ge=date(1970, 1, 1), lt=date(9999, 1, 1))] | None = None
    """Which UTC day, as YYYY-MM-DD; default: today."""


class AuditRoutes:
    """Routes about what was done. An administrator's key sees it all, any other its account's."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [Route("/audit", self.read, methods=["GET"])]

    @described(query=AuditQuery)
    async def read(self, request: Request) -> Response:
        """List what was done on a day, oldest first; of more than 20,000 events the newest."""
        query, caller = read_query(request, AuditQuery), caller_of(request)
        resource = None if query.event_type == "all" else query.event_type
        owner = None if caller.is_admin else caller.owner
        return message_reply(
            await self._s.records.audit.read(owner, resource=resource, day=query.day)
        )
