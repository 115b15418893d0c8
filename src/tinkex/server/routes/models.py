"""Training runs as models: create, describe, unload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.refusal import not_found
from tinkex.server.routes.messages import future_reply, message_reply, owner_of, read_json
from tinkex.types import (
    CreateModelRequest,
    GetInfoRequest,
    GetInfoResponse,
    ModelData,
    UnloadModelRequest,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


class ModelRoutes:
    """Routes about models."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/create_model", self.create, methods=["POST"]),
            Route("/get_info", self.info, methods=["POST"]),
            Route("/unload_model", self.unload, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """Make a run with a fresh adapter."""
        message, digest = await read_json(request, CreateModelRequest)
        future = self._s.creation.create(owner_of(request), message, digest)
        return await future_reply(future)

    async def info(self, request: Request) -> Response:
        """Describe a run. Answers at once: clients ask it between making a run and using it."""
        message, _ = await read_json(request, GetInfoRequest)
        owner = owner_of(request)
        run = self._s.runs.find(owner, message.model_id)
        if run is None or run.lora is None:
            raise not_found(str(self._s.runs.missing(message.model_id, owner)))
        self._s.sessions.touch_id(run.session_id)
        return message_reply(
            GetInfoResponse(
                model_id=run.model_id,
                model_data=ModelData(
                    arch=run.base.architecture,
                    model_name=run.base_name,
                    tokenizer_id=run.base.tokenizer_id,
                ),
                optimizer_config=run.optimizer_config,
                is_lora=True,
                lora_rank=run.lora.rank,
                model_name=run.base_name,
            )
        )

    async def unload(self, request: Request) -> Response:
        """Free a run after its earlier requests."""
        message, _ = await read_json(request, UnloadModelRequest)
        future = self._s.training.unload(owner_of(request), message.model_id)
        return await future_reply(future)
