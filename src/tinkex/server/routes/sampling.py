"""Sampling: sessions, what they sample from, and samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.openai_api.events import EventReply
from tinkex.server.openapi.describe import Media, described
from tinkex.server.refusal import not_found
from tinkex.server.routes.messages import (
    caller_of,
    future_reply,
    message_reply,
    owner_of,
    read_json,
)
from tinkex.server.sampling.streaming import events
from tinkex.types import (
    CreateSamplingSessionRequest,
    CreateSamplingSessionResponse,
    GetSamplerResponse,
    JoinSamplingSessionRequest,
    JoinSamplingSessionResponse,
    SampleRequest,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services


EVENTS = "JSON objects of type started, tokens, and at the end finished or error."


class SamplingRoutes:
    """Routes about sampling."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/create_sampling_session", self.create_session, methods=["POST"]),
            Route("/samplers/{sampler_id}", self.sampler, methods=["GET"]),
            Route("/join_sampling_session", self.join, methods=["POST"]),
            Route("/asample", self.sample, methods=["POST"]),
            Route("/sample_stream", self.stream, methods=["POST"]),
        ]

    async def create_session(self, request: Request) -> Response:
        """Make a sampling session; the weights are loaded when this answers."""
        message, _ = await read_json(request, CreateSamplingSessionRequest)
        sampler_id = await self._s.sampling_sessions.create(owner_of(request), message)
        return message_reply(CreateSamplingSessionResponse(sampling_session_id=sampler_id))

    async def join(self, request: Request) -> Response:
        """Number one more client of a sampling session."""
        message, _ = await read_json(request, JoinSamplingSessionRequest)
        number = await self._s.sampling_sessions.join(
            owner_of(request), message.sampling_session_id
        )
        return message_reply(JoinSamplingSessionResponse(client_counter=number))

    async def sampler(self, request: Request) -> Response:
        """Say what a sampling session samples from, also when it has ended."""
        sampler_id = request.path_params["sampler_id"]
        row = await self._s.store.sampler(owner_of(request), sampler_id)
        if row is None:
            raise not_found(f"There is no sampler {sampler_id!r} with this key.")
        return message_reply(
            GetSamplerResponse(
                sampler_id=row.sampler_id, base_model=row.base_model, model_path=row.model_path
            )
        )

    async def sample(self, request: Request) -> Response:
        """Take a sample request; the reply names every sequence that will come."""
        message, digest = await read_json(request, SampleRequest)
        caller = caller_of(request)
        future, sequence_ids = await self._s.sampling.sample(
            caller.owner, message, digest, key_id=caller.key_id
        )
        return await future_reply(future, sample_sequence_ids=sequence_ids)

    @described(response=(Media("text/event-stream", about=EVENTS),))
    async def stream(self, request: Request) -> Response:
        """Sample, sending the tokens as they come; whoever hangs up ends it."""
        message, _ = await read_json(request, SampleRequest)
        caller = caller_of(request)
        future, sequence_ids, tokens = await self._s.sampling.stream(
            caller.owner, message, key_id=caller.key_id
        )
        return EventReply(events(self._s.futures, future, sequence_ids, tokens))
