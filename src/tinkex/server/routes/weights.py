"""Weights: save, load, and what a checkpoint is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.routes.messages import future_reply, message_reply, owner_of, read_json
from tinkex.server.storage.checkpoints import optimizer_of
from tinkex.types import (
    LoadWeightsRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
    WeightsInfoRequest,
    WeightsInfoResponse,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


class WeightsRoutes:
    """Routes about weights."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/save_weights", self.save, methods=["POST"]),
            Route("/load_weights", self.load, methods=["POST"]),
            Route("/save_weights_for_sampler", self.save_for_sampler, methods=["POST"]),
            Route("/save_weights_external", self.save_external, methods=["POST"]),
            Route("/weights_info", self.info, methods=["POST"]),
        ]

    async def save(self, request: Request) -> Response:
        """Save a run with its optimiser state."""
        message, digest = await read_json(request, SaveWeightsRequest)
        future = self._s.saving.save(owner_of(request), message, digest)
        return await future_reply(future)

    async def load(self, request: Request) -> Response:
        """Load a checkpoint into a run, or as a new one."""
        message, digest = await read_json(request, LoadWeightsRequest)
        future = await self._s.creation.load(owner_of(request), message, digest)
        return await future_reply(future)

    async def save_for_sampler(self, request: Request) -> Response:
        """Save a run for sampling, under a name or as a sampling session."""
        message, digest = await read_json(request, SaveWeightsForSamplerRequest)
        future = self._s.saving.save_for_sampler(owner_of(request), message, digest)
        return await future_reply(future)

    async def save_external(self, request: Request) -> Response:
        """Export a run in PEFT's format."""
        message, digest = await read_json(request, SaveWeightsExternalRequest)
        future = self._s.saving.save_external(owner_of(request), message, digest)
        return await future_reply(future)

    async def info(self, request: Request) -> Response:
        """Say what a checkpoint was trained on, and its adapter's shape."""
        message, _ = await read_json(request, WeightsInfoRequest)
        owner = owner_of(request)
        run = await self._s.checkpoints.run_of(owner, message.tinker_path)
        row = await self._s.checkpoints.open(owner, message.tinker_path)
        found = await self._s.checkpoints.describe(row)
        return message_reply(
            WeightsInfoResponse(
                base_model=run.base_model,
                optimizer_config=optimizer_of(found),
                is_lora=True,
                lora_rank=found.lora.rank,
                train_unembed=found.lora.train_unembed,
                train_mlp=found.lora.train_mlp,
                train_attn=found.lora.train_attn,
            )
        )
