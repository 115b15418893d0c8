"""OpenAI's routes: what its clients call.

Owns which endpoint answers what, and choosing between a reply and a stream. Authenticates nobody:
whoever mounts this says who calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from tinkex.openai_api.chat import Chat
from tinkex.openai_api.chat_types import ChatChunk, ChatReply, ChatRequest
from tinkex.openai_api.completion_types import CompletionsReply, CompletionsRequest
from tinkex.openai_api.completions import Completions
from tinkex.openai_api.endpoint import Operation, answering, choices_reply, json_reply, read
from tinkex.openai_api.events import event, stream, unless_gone
from tinkex.openai_api.refusal import ErrorReply, error_body
from tinkex.openai_api.types import ModelListReply, ModelReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from tinkex._clock import Clock
    from tinkex.errors import TinkerError
    from tinkex.openai_api.completer import Completer, ModelCard


class OpenAIRoutes:
    """OpenAI's API over a completer.

    Args:
        completer: has the models.
        caller_of: says who sent a request; the completer gets it as it is.
        clock: tells the time of replies.
        authenticate: see `endpoint.read`.
    """

    def __init__(
        self,
        completer: Completer,
        caller_of: Callable[[Request], Any],
        clock: Clock,
        *,
        authenticate: Callable[[Request], Awaitable[None]] | None = None,
    ) -> None:
        self._authenticate = authenticate
        self._completer = completer
        self._caller_of = caller_of
        self._chat = Chat(completer, clock)
        self._completions = Completions(completer, clock)

    def operations(self) -> list[Operation]:
        """List what is answered, below `/v1`."""
        return [
            Operation("GET", "/models", self.models, None, ModelListReply, ErrorReply),
            Operation("GET", "/models/{model:path}", self.model, None, ModelReply, ErrorReply),
            Operation(
                "POST",
                "/chat/completions",
                self.chat,
                ChatRequest,
                ChatReply,
                ErrorReply,
                streamed=ChatChunk,
            ),
            Operation(
                "POST",
                "/completions",
                self.completions,
                CompletionsRequest,
                CompletionsReply,
                ErrorReply,
                streamed=CompletionsReply,
            ),
        ]

    def routes(self) -> list[Route]:
        """List the same as routes."""
        return [one.route() for one in self.operations()]

    @answering(error_body)
    async def models(self, request: Request) -> Response:
        """List the models that the key may name."""
        cards = await self._completer.models(self._caller_of(request))
        return json_reply(ModelListReply(data=[_model(card) for card in cards]))

    @answering(error_body)
    async def model(self, request: Request) -> Response:
        """Describe one model."""
        name = request.path_params["model"]
        return json_reply(_model(await self._completer.model(self._caller_of(request), name)))

    @answering(error_body)
    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        message = await read(request, ChatRequest, self._authenticate)
        caller = self._caller_of(request)
        if message.stream:
            return await stream(request, self._chat.events(caller, message), error_event)
        return await choices_reply(await unless_gone(request, self._chat.reply(caller, message)))

    @answering(error_body)
    async def completions(self, request: Request) -> Response:
        """Go on with prompts."""
        message = await read(request, CompletionsRequest, self._authenticate)
        caller = self._caller_of(request)
        if message.stream:
            return await stream(request, self._completions.events(caller, message), error_event)
        reply = await unless_gone(request, self._completions.reply(caller, message))
        return await choices_reply(reply)


def error_event(error: TinkerError) -> bytes:
    """Write the event that ends a stream which fails."""
    return event(orjson.dumps(error_body(error)))


def _model(card: ModelCard) -> ModelReply:
    return ModelReply(
        id=card.name,
        created=card.created,
        owned_by=card.owned_by,
        base_model=card.base_model,
        max_context_length=card.max_context_length,
    )
