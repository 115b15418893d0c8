"""Usage: the official API's billing figures, and sums by whatever groups are asked for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import AwareDatetime, Field, field_validator
from starlette.responses import Response
from starlette.routing import Route

from tinkex.server.openapi.describe import JSON, Media, Query, described
from tinkex.server.openapi.strict import read_query
from tinkex.server.records.reports import usage_csv
from tinkex.server.routes.messages import caller_of, message_reply
from tinkex.server.routes.queries import WrittenOut
from tinkex.types import UsageReport
from tinkex.types.records import UsageGroup

if TYPE_CHECKING:
    from starlette.requests import Request

    from tinkex.server.services import Services

CSV = "text/csv"
DEFAULT_DAYS = 30
_HOUR = timedelta(hours=1)


Moment = Annotated[
    AwareDatetime,
    WrittenOut,
    Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(9999, 1, 1, tzinfo=UTC)),
]
"""A moment that a day can be added to and taken from."""


class BillingQuery(Query):
    """Which hours."""

    starting_on: Moment
    """First UTC hour."""
    ending_before: Moment
    """The hour after the last one; at most 14 days later."""


class StorageQuery(Query):
    """Whose checkpoints."""

    project_id: str | None = None
    """Those of this project's sessions alone."""


class UsageQuery(Query):
    """Which usage, and how it is summed."""

    starting_on: Moment | None = None
    """First moment; default: 30 days before the last."""
    ending_before: Moment | None = None
    """The moment after the last; default: an hour from now."""
    by: str = "day,key"
    """What makes a row: any of hour, day, account, key, session, source and base_model, separated
    by commas; empty sums everything."""
    format: Literal["json", "csv"] = "json"

    @field_validator("by")
    @classmethod
    def _known(cls, value: str) -> str:
        unknown = [name for name in value.split(",") if name and name not in get_args(UsageGroup)]
        if unknown:
            known = ", ".join(get_args(UsageGroup))
            raise ValueError(f"{unknown[0][:40]!r} is none of {known}")
        return value

    @property
    def groups(self) -> list[UsageGroup]:
        """What makes a row."""
        return [name for name in get_args(UsageGroup) if name in self.by.split(",")]


class UsageRoutes:
    """Routes about usage. An administrator's key sees every account's, any other its own."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/billing/usage/events", self.events, methods=["GET"]),
            Route("/billing/usage/checkpoints/current", self.storage, methods=["GET"]),
            Route("/usage", self.usage, methods=["GET"]),
        ]

    @described(query=BillingQuery)
    async def events(self, request: Request) -> Response:
        """List usage by the hour, kind, base model and session. There are no prices here."""
        query = read_query(request, BillingQuery)
        return message_reply(
            await self._s.records.reports.billing(
                _whose(request), query.starting_on, query.ending_before
            )
        )

    @described(query=StorageQuery)
    async def storage(self, request: Request) -> Response:
        """Sum what checkpoints take now, by project and account."""
        query = read_query(request, StorageQuery)
        reports = self._s.records.reports
        return message_reply(await reports.checkpoint_storage(_whose(request), query.project_id))

    @described(query=UsageQuery, response=(Media(JSON, UsageReport), Media(CSV)))
    async def usage(self, request: Request) -> Response:
        """Sum tokens, checkpoints and engine seconds, as JSON or CSV."""
        query = read_query(request, UsageQuery)
        end = query.ending_before or datetime.fromtimestamp(self._s.clock.now(), UTC) + _HOUR
        report = await self._s.records.reports.usage(
            _whose(request),
            start=query.starting_on or end - timedelta(days=DEFAULT_DAYS),
            end=end,
            by=query.groups,
        )
        if query.format == "csv":
            return Response(usage_csv(report, query.groups), media_type=CSV)
        return message_reply(report)


def _whose(request: Request) -> str | None:
    """Return whose usage a caller sees: everybody's as None."""
    caller = caller_of(request)
    return None if caller.is_admin else caller.owner
