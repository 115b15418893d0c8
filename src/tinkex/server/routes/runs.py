"""Training runs and checkpoints as records: list, look at, delete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.checkpoints import parse_id
from tinkex.server.refusal import not_found
from tinkex.server.routes.messages import json_reply, message_reply, owner_of, query_number
from tinkex.types import (
    Checkpoint,
    CheckpointsListResponse,
    Cursor,
    TrainingRun,
    TrainingRunsResponse,
)
from tinkex.types.tinker_path import SEGMENTS

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services
    from tinkex.server.store import CheckpointRow, RunRow

MAX_PAGE = 1000


class RunRoutes:
    """Routes about records."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes. A checkpoint's id has a slash in it, so it takes the path's tail."""
        return [
            Route("/training_runs", self.list_runs, methods=["GET"]),
            Route("/training_runs/{run_id}", self.get_run, methods=["GET"]),
            Route("/training_runs/{run_id}/checkpoints", self.list_of_run, methods=["GET"]),
            Route(
                "/training_runs/{run_id}/checkpoints/{checkpoint_id:path}",
                self.delete,
                methods=["DELETE"],
            ),
            Route("/checkpoints", self.list_checkpoints, methods=["GET"]),
        ]

    async def list_runs(self, request: Request) -> Response:
        """List the owner's training runs, newest first."""
        limit = query_number(request, "limit", 20, lowest=1, highest=MAX_PAGE)
        offset = query_number(request, "offset", 0, lowest=0, highest=2**62)
        rows, total = await self._s.store.runs(owner_of(request), limit=limit, offset=offset)
        return message_reply(
            TrainingRunsResponse(
                training_runs=[await self._run(row) for row in rows],
                cursor=Cursor(offset=offset, limit=limit, total_count=total),
            )
        )

    async def get_run(self, request: Request) -> Response:
        """Describe one training run, live or not."""
        return message_reply(await self._run(await self._row(request)))

    async def list_of_run(self, request: Request) -> Response:
        """List a training run's checkpoints, oldest first."""
        row = await self._row(request)
        rows = await self._s.store.run_checkpoints(row.owner, row.run_id, now=self._s.clock.now())
        return message_reply(CheckpointsListResponse(checkpoints=[_checkpoint(r) for r in rows]))

    async def list_checkpoints(self, request: Request) -> Response:
        """List the owner's checkpoints, newest first."""
        limit = query_number(request, "limit", 100, lowest=1, highest=MAX_PAGE)
        offset = query_number(request, "offset", 0, lowest=0, highest=2**62)
        rows, total = await self._s.store.checkpoints(
            owner_of(request), now=self._s.clock.now(), limit=limit, offset=offset
        )
        return message_reply(
            CheckpointsListResponse(
                checkpoints=[_checkpoint(row) for row in rows],
                cursor=Cursor(offset=offset, limit=limit, total_count=total),
            )
        )

    async def delete(self, request: Request) -> Response:
        """Delete a checkpoint."""
        row = await self._row(request)
        key = parse_id(row.run_id, request.path_params["checkpoint_id"])
        found = await self._s.store.checkpoint(row.owner, key, now=self._s.clock.now())
        if found is None:
            raise not_found(f"Run {row.run_id!r} has no checkpoint {key.checkpoint_id!r}.")
        await self._s.checkpoints.delete(key)
        return json_reply({})

    async def _row(self, request: Request) -> RunRow:
        run_id = request.path_params["run_id"]
        row = await self._s.store.run(owner_of(request), run_id)
        if row is None:
            raise not_found(f"There is no training run {run_id!r} with this key.")
        return row

    async def _run(self, row: RunRow) -> TrainingRun:
        rows = await self._s.store.run_checkpoints(row.owner, row.run_id, now=self._s.clock.now())
        live = self._s.runs.find(row.owner, row.run_id)
        last = {r.kind: _checkpoint(r) for r in rows}
        return TrainingRun(
            training_run_id=row.run_id,
            base_model=row.base_model,
            model_owner=row.owner,
            is_lora=True,
            lora_rank=row.lora_rank,
            last_request_time=_time(row.last_request_at if live is None else live.last_request_at),
            last_checkpoint=last.get("weights"),
            last_sampler_checkpoint=last.get("sampler_weights"),
            user_metadata=row.user_metadata,
        )


def _checkpoint(row: CheckpointRow) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=row.key.checkpoint_id,
        checkpoint_type=SEGMENTS[row.kind],
        time=_time(row.created_at),
        tinker_path=row.key.path,
        size_bytes=row.size_bytes,
        expires_at=None if row.expires_at is None else _time(row.expires_at),
        user_metadata=row.user_metadata,
        public=row.public,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
