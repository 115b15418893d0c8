"""Keys of one's own, and for admins everybody's accounts and keys. Our own part of the API.

`/keys` is about the account that calls; `/accounts` is for admins. Members find nothing there,
whether it exists or not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.routing import Route

from tinkex.errors import InputError
from tinkex.server.accounts.directory import KeyTerms, terms_within
from tinkex.server.accounts.messages import (
    AccountResponse,
    AccountsResponse,
    ChangeAccountRequest,
    CreateAccountRequest,
    CreateKeyRequest,
    KeyResponse,
    KeysResponse,
    NewKeyResponse,
    describe_account,
    describe_key,
)
from tinkex.server.openapi.describe import described
from tinkex.server.records.audit import AuditEvent
from tinkex.server.refusal import forbidden
from tinkex.server.routes.messages import caller_of, message_reply, owner_of, read_json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from tinkex.server.accounts.caller import Caller
    from tinkex.server.accounts.records import ApiKey
    from tinkex.server.services import Services


class AccountRoutes:
    """Routes about accounts and keys."""

    def __init__(self, services: Services) -> None:
        self._accounts = services.accounts
        self._directory = services.accounts.directory
        self._audit = services.records.audit

    def routes(self) -> list[Route]:
        """List the routes."""
        one, keys = "/accounts/{account_id}", "/accounts/{account_id}/keys"
        return [
            Route("/keys", self.own_keys, methods=["GET"]),
            Route("/keys", self.create_own_key, methods=["POST"]),
            Route("/keys/{key_id}", self.own_key, methods=["GET"]),
            Route("/keys/{key_id}", self.revoke_own_key, methods=["DELETE"]),
            Route("/accounts", self.accounts, methods=["GET"]),
            Route("/accounts", self.create_account, methods=["POST"]),
            Route(one, self.account, methods=["GET"]),
            Route(one, self.change_account, methods=["PATCH"]),
            Route(keys, self.keys_of, methods=["GET"]),
            Route(keys, self.create_key_for, methods=["POST"]),
            Route(f"{keys}/{{key_id}}", self.revoke_key_of, methods=["DELETE"]),
        ]

    # one's own

    @described(response=KeysResponse)
    async def own_keys(self, request: Request) -> Response:
        """List the keys of the caller's account, oldest first, ended ones too."""
        return await self._list(owner_of(request))

    @described(response=KeyResponse)
    async def own_key(self, request: Request) -> Response:
        """Describe a key of the caller's account."""
        key_id = request.path_params["key_id"]
        return self._reply(self._directory.key(key_id, account_id=owner_of(request)))

    @described(request=CreateKeyRequest, response=NewKeyResponse)
    async def create_own_key(self, request: Request) -> Response:
        """Make a key that may do no more than the one that asks."""
        message, _ = await read_json(request, CreateKeyRequest)
        caller = caller_of(request)
        asking = self._accounts.store.key(caller.key_id)
        terms = terms_within(asking, message.terms(), caller.scopes)
        return await self._create(request, caller.owner, message, terms)

    @described(response=KeyResponse)
    async def revoke_own_key(self, request: Request) -> Response:
        """End a key of the caller's account. One with limits ends itself and no other."""
        caller, key_id = caller_of(request), request.path_params["key_id"]
        self._directory.key(key_id, account_id=caller.owner)
        self._check_unlimited(caller, key_id)
        return await self._revoke(request, key_id, caller.owner)

    # everybody's

    @described(response=AccountsResponse)
    async def accounts(self, _request: Request) -> Response:
        """List every account, oldest first."""
        found = await asyncio.to_thread(self._directory.accounts)
        return message_reply(AccountsResponse(accounts=[describe_account(one) for one in found]))

    @described(response=AccountResponse)
    async def account(self, request: Request) -> Response:
        """Describe an account."""
        account = self._directory.account(request.path_params["account_id"])
        return message_reply(describe_account(account))

    @described(request=CreateAccountRequest, response=AccountResponse)
    async def create_account(self, request: Request) -> Response:
        """Make an account. It has no key yet."""
        message, _ = await read_json(request, CreateAccountRequest)
        account = await asyncio.to_thread(
            self._directory.create_account,
            message.name,
            email=message.email,
            role=message.role,
            password=message.password,
        )
        await self._note(
            request,
            AuditEvent.ACCOUNT_CREATED,
            account_id=account.account_id,
            role=account.role,
        )
        return message_reply(describe_account(account))

    @described(request=ChangeAccountRequest, response=AccountResponse)
    async def change_account(self, request: Request) -> Response:
        """Change an account's role, its password, or whether it works; at once."""
        message, _ = await read_json(request, ChangeAccountRequest)
        account_id = request.path_params["account_id"]
        account = await asyncio.to_thread(
            self._directory.change_account,
            account_id,
            role=message.role,
            disabled=message.disabled,
            password=message.password,
        )
        await self._note(
            request,
            AuditEvent.ACCOUNT_CHANGED,
            account_id=account_id,
            role=message.role,
            disabled=message.disabled,
            password_set=message.password is not None,
        )
        return message_reply(describe_account(account))

    @described(response=KeysResponse)
    async def keys_of(self, request: Request) -> Response:
        """List the keys of an account, oldest first, ended ones too."""
        return await self._list(request.path_params["account_id"])

    @described(request=CreateKeyRequest, response=NewKeyResponse)
    async def create_key_for(self, request: Request) -> Response:
        """Make a key for an account."""
        message, _ = await read_json(request, CreateKeyRequest)
        account_id = request.path_params["account_id"]
        return await self._create(request, account_id, message, message.terms())

    @described(response=KeyResponse)
    async def revoke_key_of(self, request: Request) -> Response:
        """End a key of an account."""
        account_id = request.path_params["account_id"]
        return await self._revoke(request, request.path_params["key_id"], account_id)

    async def _list(self, account_id: str) -> Response:
        account = self._directory.account(account_id)
        keys = await asyncio.to_thread(self._directory.keys, account_id)
        return message_reply(KeysResponse(keys=[describe_key(key, account) for key in keys]))

    async def _create(
        self, request: Request, account_id: str, message: CreateKeyRequest, terms: KeyTerms
    ) -> Response:
        made = await asyncio.to_thread(
            self._directory.create_key, account_id, message.name, terms, note=message.note
        )
        await self._note(
            request,
            AuditEvent.KEY_CREATED,
            account_id=account_id,
            key=made.key.key_id,
            scopes=sorted(made.key.scopes),
        )
        described_key = describe_key(made.key, self._directory.account(account_id))
        return message_reply(NewKeyResponse(**dict(described_key), key=made.secret))

    async def _revoke(self, request: Request, key_id: str, account_id: str) -> Response:
        key = await asyncio.to_thread(self._directory.revoke, key_id, account_id=account_id)
        await self._note(request, AuditEvent.KEY_REVOKED, account_id=account_id, key=key_id)
        return self._reply(key)

    async def _note(
        self, request: Request, event: AuditEvent, **details: str | bool | list[str] | None
    ) -> None:
        caller = caller_of(request)
        await self._audit.note(event, owner=caller.owner, key_id=caller.key_id, **details)

    def _reply(self, key: ApiKey) -> Response:
        return message_reply(describe_key(key, self._directory.account(key.account_id)))

    def _check_unlimited(self, caller: Caller, key_id: str) -> None:
        asking = self._accounts.store.key(caller.key_id)
        if asking is None or asking.key_id == key_id:
            return
        everything = self._directory.account(caller.owner).scopes
        try:
            terms_within(asking, KeyTerms(scopes=everything), caller.scopes)
        except InputError as error:
            raise forbidden(
                "A key with limits ends itself and no other: use one without."
            ) from error
