"""Calls about tokens that let somebody else load and copy one checkpoint. Ours, not official.

Owns these calls of `RestClient`. A token is used as `weights_access_token`.
"""

from __future__ import annotations

from typing import Any, TypeVar

from tinkex.client import operations
from tinkex.client.connection import Connection
from tinkex.client.deprecated import awaited_twin
from tinkex.client.future import APIFuture
from tinkex.types import ParsedCheckpointTinkerPath
from tinkex.types.access_tokens import AccessTokensResponse, MakeAccessTokenRequest, NewAccessToken
from tinkex.wire import endpoints
from tinkex.wire.endpoints import Endpoint

R = TypeVar("R")


class AccessTokenCalls:
    """What a `RestClient` can do about access tokens."""

    _connection: Connection

    def create_weights_access_token(
        self, tinker_path: str, ttl_seconds: int = 86_400
    ) -> APIFuture[NewAccessToken]:
        """Make a token; the answer alone shows it.

        Args:
            tinker_path: the checkpoint that it opens.
            ttl_seconds: seconds until it ends.
        """
        body = operations.checked(lambda: MakeAccessTokenRequest(ttl_seconds=ttl_seconds))
        return self._call(
            endpoints.MAKE_ACCESS_TOKEN, "create_weights_access_token", _place(tinker_path), body
        )

    def list_weights_access_tokens(self, tinker_path: str) -> APIFuture[AccessTokensResponse]:
        """List a checkpoint's tokens that have not ended, without the tokens themselves."""
        return self._call(
            endpoints.LIST_ACCESS_TOKENS, "list_weights_access_tokens", _place(tinker_path)
        )

    def revoke_weights_access_token(
        self, tinker_path: str, token_id: str
    ) -> APIFuture[dict[str, Any]]:
        """Take a token back; the answer holds nothing."""
        return self._call(
            endpoints.REVOKE_ACCESS_TOKEN,
            "revoke_weights_access_token",
            {**_place(tinker_path), "token_id": token_id},
        )

    create_weights_access_token_async = awaited_twin(create_weights_access_token)
    list_weights_access_tokens_async = awaited_twin(list_weights_access_tokens)
    revoke_weights_access_token_async = awaited_twin(revoke_weights_access_token)

    def _call(
        self,
        endpoint: Endpoint[R],
        method: str,
        path: dict[str, str],
        body: MakeAccessTokenRequest | None = None,
    ) -> APIFuture[R]:
        connection = self._connection

        async def run() -> R:
            return await connection.sender.call(
                endpoint, body, path=path, sdk_method=f"RestClient.{method}"
            )

        return connection.submit(run)


def _place(tinker_path: str) -> dict[str, str]:
    parsed = ParsedCheckpointTinkerPath.from_tinker_path(tinker_path)
    return {
        "training_run_id": parsed.training_run_id,
        "checkpoint_id": parsed.checkpoint_id,
    }
