"""Who am I: tokens in exchange for a key or a password, and the key that asks.

The paths and bodies of the first three are the official service's; `/auth/login` is our own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from tinkex.errors import InputError
from tinkex.server.accounts.keys import key_number_of
from tinkex.server.accounts.messages import LoginRequest, LoginResponse, moment
from tinkex.server.accounts.tokens import ORGANIZATION
from tinkex.server.http.middleware import credential_of
from tinkex.server.openapi.describe import described
from tinkex.server.records.audit import AuditEvent
from tinkex.server.refusal import forbidden, not_found
from tinkex.server.routes.messages import caller_of, json_reply, message_reply, read_json
from tinkex.types import AuthTokenResponse, OwnKeyResponse

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.accounts.records import ApiKey
    from tinkex.server.services import Services


class AuthRoutes:
    """Routes about the caller."""

    def __init__(self, services: Services) -> None:
        self._accounts = services.accounts
        self._audit = services.records.audit

    def routes(self) -> list[Route]:
        """List the routes."""
        return [
            Route("/auth/token", self.token, methods=["POST"]),
            Route("/auth/apikey/me", self.own_key, methods=["GET"]),
            Route("/auth/apikey/me", self.delete_own_key, methods=["DELETE"]),
            Route("/auth/login", self.login, methods=["POST"]),
        ]

    async def token(self, request: Request) -> Response:
        """Give a token that stands for the caller's key or login for a while."""
        claims = self._accounts.authenticator.claims(credential_of(request.headers))
        jwt, _ = self._accounts.tokens.issue(claims)
        return message_reply(AuthTokenResponse(jwt=jwt))

    async def own_key(self, request: Request) -> Response:
        """Say what the server knows of the key that asks."""
        key = self._key(request)
        account = self._accounts.store.account(key.account_id)
        assert account is not None, "the authentication found it"
        details: dict[str, Any] = {
            "org_details": {"name": ORGANIZATION},
            "user_details": {"email": account.email or account.name},
        }
        return message_reply(
            OwnKeyResponse(
                key_id=key_number_of(key.key_id), name=key.name, note=key.note, details=details
            )
        )

    async def delete_own_key(self, request: Request) -> Response:
        """Revoke the key that asks, and no other."""
        key = self._key(request)
        try:
            await asyncio.to_thread(self._accounts.directory.revoke, key.key_id)
        except InputError as error:
            raise forbidden(str(error)) from error
        await self._audit.note(
            AuditEvent.KEY_REVOKED,
            owner=key.account_id,
            key_id=key.key_id,
            account_id=key.account_id,
            key=key.key_id,
        )
        return json_reply({})

    @described(request=LoginRequest, response=LoginResponse)
    async def login(self, request: Request) -> Response:
        """Give a token for an address and its password."""
        message, _ = await read_json(request, LoginRequest)
        jwt, expires = await self._accounts.logins.log_in(message.email, message.password)
        return message_reply(LoginResponse(jwt=jwt, expires_at=moment(expires)))

    def _key(self, request: Request) -> ApiKey:
        key = self._accounts.store.key(caller_of(request).key_id)
        if key is None:
            raise not_found("This is a login, not an API key.")
        return key
