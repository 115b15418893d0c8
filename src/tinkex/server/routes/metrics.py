"""Metrics of training runs, as JSON page by page or as CSV."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from starlette.responses import Response
from starlette.routing import Route

from tinkex.server.openapi.describe import JSON, Media, Query, described
from tinkex.server.openapi.strict import read_query
from tinkex.server.records.metrics import metrics_csv
from tinkex.server.refusal import not_found
from tinkex.server.routes.messages import message_reply, owner_of
from tinkex.types import TrainingMetricsResponse

if TYPE_CHECKING:
    from starlette.requests import Request

    from tinkex.server.services import Services

CSV = "text/csv"
MAX_ROWS = 20_000


class MetricsQuery(Query):
    """Which part of a run's metrics."""

    cursor: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """`next_cursor` of the page before; 0 begins."""
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 1000
    format: Literal["json", "csv"] = "json"


class MetricsRoutes:
    """Routes about what training told."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [Route("/training_runs/{run_id}/metrics", self.metrics, methods=["GET"])]

    @described(query=MetricsQuery, response=(Media(JSON, TrainingMetricsResponse), Media(CSV)))
    async def metrics(self, request: Request) -> Response:
        """List what each training step of a run told, oldest first, also when it has ended."""
        query, run_id = read_query(request, MetricsQuery), request.path_params["run_id"]
        if await self._s.store.run(owner_of(request), run_id) is None:
            raise not_found(f"There is no training run {run_id!r} with this key.")
        page = await self._s.records.metrics.page(run_id, cursor=query.cursor, limit=query.limit)
        if query.format == "csv":
            return Response(metrics_csv(page), media_type=CSV)
        return message_reply(page)
