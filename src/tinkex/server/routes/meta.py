"""What the server is and can do: health, client settings, base models, and the telemetry sink."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson
from starlette.routing import Route

from tinkex.server.openapi.describe import described
from tinkex.server.routes.messages import json_reply, message_reply
from tinkex.types import (
    ClientConfigResponse,
    ClientDynamicConfigResponse,
    GetServerCapabilitiesResponse,
    HealthResponse,
    SupportedModel,
    TelemetryResponse,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


BATCHED_POLLS_SINCE = (0, 38)
"""The version of the official SDK whose batched polls were recorded."""


class MetaRoutes:
    """Routes that need no session."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/client/config", self.client_config, methods=["POST"]),
            Route("/client/dynamic_config", self.dynamic_config, methods=["POST"]),
            Route("/get_server_capabilities", self.capabilities, methods=["GET"]),
            Route("/telemetry", self.telemetry, methods=["POST"]),
        ]

    @described(faults={503: "A base model's engine broke down."})
    async def health(self, _request: Request) -> Response:
        """Say that requests are served, or with a 503 why not. The one route that needs no key."""
        for base in self._s.bases:
            if base.jobs.failure is not None:
                return json_reply({"status": "failed", "detail": str(base.jobs.failure)}, 503)
        return message_reply(HealthResponse(status="ok"))

    @described(unread=True)
    async def client_config(self, request: Request) -> Response:
        """Advertise the limits, and to clients that know them tokens and the batched polls.

        Whatever a client says of itself, or does not, it gets an answer: without one it cannot
        start.
        """
        limits = self._s.config.limits
        batched = _knows_batched_polls(await request.body())
        return message_reply(
            ClientConfigResponse(
                fwdbwd_max_chunk_len=limits.fwdbwd_max_chunk_len,
                fwdbwd_max_chunk_bytes_count=limits.fwdbwd_max_chunk_bytes,
                sample_max_concurrent_requests=limits.sample_max_concurrent_requests,
                # a key that has used what it may gets no more by waiting
                billing_exception_max_pause_duration_sec=0,
                pjwt_auth_enabled=batched,
                sample_use_retrieve_futures=batched,
                sample_join_sampling_session=batched,
                custom_loss_server_side=batched,
            )
        )

    @described(unread=True)
    async def dynamic_config(self, _request: Request) -> Response:
        """Let clients cancel the samples that they gave up."""
        return message_reply(ClientDynamicConfigResponse(sample_cancel_enabled=True))

    async def capabilities(self, _request: Request) -> Response:
        """List the base models under each of their names."""
        supported = [self._capability(name) for name in self._s.bases.names]
        return message_reply(GetServerCapabilitiesResponse(supported_models=supported))

    def _capability(self, name: str) -> SupportedModel:
        base = self._s.bases.get(name)
        return SupportedModel(
            model_name=name,
            max_context_length=base.max_context_length,
            hidden_size=base.hidden_size,
            trainable=True,
            sampleable=True,
        )

    @described(unread=True)
    async def telemetry(self, _request: Request) -> Response:
        """Accept and drop: the events carry users' tracebacks, and clients wait for this reply."""
        return message_reply(TelemetryResponse(status="accepted"))


def _knows_batched_polls(body: bytes) -> bool:
    """Whether a client is one whose batched polls are those that are spoken here."""
    try:
        version = str(orjson.loads(body)["sdk_version"])
    except (ValueError, KeyError, TypeError):
        return False
    numbers = re.match(r"(\d+)\.(\d+)", version)
    official = numbers is not None and (int(numbers[1]), int(numbers[2])) >= BATCHED_POLLS_SINCE
    return official or version.startswith("tinkex")
