"""Training steps: forward_backward, forward, optim_step, and losses of the client's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.http.decoding import read_call, read_oversize_call
from tinkex.server.openapi.describe import described
from tinkex.server.openapi.results import BATCH_FORMS, FORWARD_FORMS
from tinkex.server.routes.messages import future_reply, owner_of, read_json
from tinkex.types import CreateCustomLossRequest, OptimStepRequest
from tinkex.wire.headers import CONTENT_TYPE

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


class TrainingRoutes:
    """Routes about training steps."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/forward_backward", self.forward_backward, methods=["POST"]),
            Route("/forward", self.forward, methods=["POST"]),
            Route("/optim_step", self.optim_step, methods=["POST"]),
            Route("/create_custom_loss", self.create_custom_loss, methods=["POST"]),
        ]

    @described(request=BATCH_FORMS)
    async def forward_backward(self, request: Request) -> Response:
        """Take a batch: protobuf, or the JSON of SDKs up to 0.23."""
        return await self._take_batch(request, forward_only=None)

    @described(request=FORWARD_FORMS)
    async def forward(self, request: Request) -> Response:
        """Take a batch to run forward only, as SDKs up to 0.23 ask for it."""
        return await self._take_batch(request, forward_only=True)

    async def optim_step(self, request: Request) -> Response:
        """Apply the gradients."""
        message, digest = await read_json(request, OptimStepRequest)
        future = self._s.training.optim_step(owner_of(request), message, digest)
        return await future_reply(future)

    async def create_custom_loss(self, request: Request) -> Response:
        """Take a loss of the client's own."""
        message, digest = await read_json(request, CreateCustomLossRequest)
        future = self._s.custom_losses.create(owner_of(request), message, digest)
        return await future_reply(future)

    async def _take_batch(self, request: Request, *, forward_only: bool | None) -> Response:
        body = await request.body()
        content_type = request.headers.get(CONTENT_TYPE, "")
        if request.state.oversize:
            limit = self._s.config.limits.max_body_bytes
            call = read_oversize_call(body, content_type=content_type, limit=limit)
        else:
            call = await read_call(
                body,
                content_type=content_type,
                max_datums=self._s.config.limits.max_datums,
                forward_only=forward_only,
            )
        future = self._s.training.forward_backward(owner_of(request), call)
        return await future_reply(future)
