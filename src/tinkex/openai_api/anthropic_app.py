"""Anthropic's routes: what its clients call.

Owns which endpoint answers what. Authenticates nobody: whoever mounts this says who calls.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tinkex.openai_api.anthropic_messages import (
    Messages,
    anthropic_error_body,
    anthropic_error_event,
)
from tinkex.openai_api.anthropic_types import (
    AnthropicErrorReply,
    AnthropicModel,
    AnthropicModels,
    CountTokensRequest,
    MessageEvent,
    MessageReply,
    MessagesRequest,
    TokensReply,
)
from tinkex.openai_api.endpoint import Operation, answering, json_reply, read
from tinkex.openai_api.events import stream, unless_gone

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from tinkex.openai_api.completer import Completer, ModelCard


class AnthropicRoutes:
    """Anthropic's API over a completer.

    Args:
        completer: has the models.
        caller_of: says who sent a request; the completer gets it as it is.
        authenticate: see `endpoint.read`.
    """

    def __init__(
        self,
        completer: Completer,
        caller_of: Callable[[Request], Any],
        *,
        authenticate: Callable[[Request], Awaitable[None]] | None = None,
    ) -> None:
        self._authenticate = authenticate
        self._completer = completer
        self._caller_of = caller_of
        self._messages = Messages(completer)

    def operations(self) -> list[Operation]:
        """List what is answered, below `/v1`, beside the models."""
        return [
            Operation(
                "POST",
                "/messages",
                self.messages,
                MessagesRequest,
                MessageReply,
                AnthropicErrorReply,
                streamed=MessageEvent,
            ),
            Operation(
                "POST",
                "/messages/count_tokens",
                self.count_tokens,
                CountTokensRequest,
                TokensReply,
                AnthropicErrorReply,
            ),
        ]

    def model_operations(self) -> list[Operation]:
        """List what is answered about models, where OpenAI's API is not in the same place."""
        return [
            Operation("GET", "/models", self.models, None, AnthropicModels, AnthropicErrorReply),
            Operation(
                "GET", "/models/{model:path}", self.model, None, AnthropicModel, AnthropicErrorReply
            ),
        ]

    def routes(self) -> list[Route]:
        """List all of it as routes."""
        return [one.route() for one in (*self.operations(), *self.model_operations())]

    @answering(anthropic_error_body)
    async def messages(self, request: Request) -> Response:
        """Answer a conversation."""
        message = await read(request, MessagesRequest, self._authenticate)
        caller = self._caller_of(request)
        if message.stream:
            events = self._messages.events(caller, message)
            return await stream(request, events, anthropic_error_event)
        return json_reply(await unless_gone(request, self._messages.reply(caller, message)))

    @answering(anthropic_error_body)
    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of a conversation."""
        message = await read(request, CountTokensRequest, self._authenticate)
        return json_reply(await self._messages.count(self._caller_of(request), message))

    @answering(anthropic_error_body)
    async def models(self, request: Request) -> Response:
        """List the models that the key may name, on one page."""
        found = [_model(card) for card in await self._completer.models(self._caller_of(request))]
        return json_reply(
            AnthropicModels(
                data=found,
                first_id=found[0].id if found else None,
                last_id=found[-1].id if found else None,
            )
        )

    @answering(anthropic_error_body)
    async def model(self, request: Request) -> Response:
        """Describe one model."""
        name = request.path_params["model"]
        return json_reply(_model(await self._completer.model(self._caller_of(request), name)))


def _model(card: ModelCard) -> AnthropicModel:
    return AnthropicModel(
        id=card.name,
        display_name=card.name,
        created_at=datetime.fromtimestamp(card.created, tz=UTC).isoformat(),
        max_input_tokens=card.max_context_length,
        max_tokens=card.max_context_length,
    )
