"""Tokens that let somebody else read one checkpoint: make, list, take back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.server.refusal import not_found
from tinkex.server.routes.messages import (
    json_reply,
    key_in_path,
    message_reply,
    owner_of,
    read_json,
)
from tinkex.types.access_tokens import AccessTokensResponse, MakeAccessTokenRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.services import Services
    from tinkex.server.storage.blobs import CheckpointKey

_TOKENS = "/training_runs/{run_id}/checkpoints/{kind}/{name}/access_tokens"


class AccessRoutes:
    """Routes about access tokens; only a checkpoint's owner comes here."""

    def __init__(self, services: Services) -> None:
        self._s = services

    def routes(self) -> list[Route]:
        """List the routes; they stand before those that take a checkpoint's id to the end."""
        return [
            Route(_TOKENS, self.make, methods=["POST"]),
            Route(_TOKENS, self.list, methods=["GET"]),
            Route(f"{_TOKENS}/{{token_id}}", self.revoke, methods=["DELETE"]),
        ]

    async def make(self, request: Request) -> Response:
        """Make a token; the answer shows it, and nothing does again."""
        message, _ = await read_json(request, MakeAccessTokenRequest)
        key = await self._key(request)
        return message_reply(await self._s.checkpoints.access.make(key, message.ttl_seconds))

    async def list(self, request: Request) -> Response:
        """List the tokens of a checkpoint that have not ended."""
        found = await self._s.checkpoints.access.list(await self._key(request))
        return message_reply(AccessTokensResponse(access_tokens=found))

    async def revoke(self, request: Request) -> Response:
        """Take a token back: it opens nothing from now on."""
        key, token_id = await self._key(request), request.path_params["token_id"]
        if not await self._s.checkpoints.access.revoke(key, token_id):
            raise not_found(f"{key.path} has no access token {token_id[:100]!r}.")
        return json_reply({})

    async def _key(self, request: Request) -> CheckpointKey:
        key = key_in_path(request)
        owner = owner_of(request)
        if await self._s.store.checkpoint(owner, key, now=self._s.clock.now()) is None:
            raise not_found(f"There is no checkpoint {key.path} with this key.")
        return key
