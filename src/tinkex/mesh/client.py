"""The mesh for a Python program: `MeshClient`.

    async with MeshClient.join(invitation, data_dir=folder) as mesh:
        await mesh.login("you@example.org", password)
        request = CompletionRequest(model="tinkex/sprout", prompt=TextPrompt("Once"))
        reply = await mesh.complete(request)
        async for piece in reply.pieces():
            ...

Owns the program's credential: an API key, or a session that is refreshed in time. The program is a
client worker of its own, without HTTP; all else is `workers.client`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tinkex._clock import Clock, SystemClock
from tinkex.errors import AuthenticationError, CredentialError
from tinkex.mesh.accounts.scopes import DEFAULT_SCOPES
from tinkex.mesh.api import auth
from tinkex.mesh.api.gateway import GatewayApi, PublishAdapter, Published, UnpublishAdapter
from tinkex.mesh.config import MeshConfig
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S
from tinkex.mesh.workers.calling.completer import KeptReceipt
from tinkex.mesh.workers.calling.completion import MeshCompletion
from tinkex.mesh.workers.client import ClientConfig, ClientWorker
from tinkex.mesh.workers.entry import enter_network
from tinkex.mesh.workers.machine import Machine
from tinkex.openai_api.completer import CompletionRequest, ModelCard, Prompt

REFRESH_BEFORE_S = 30.0
"""A session is refreshed so long before its access token expires, at least."""
APART_S = 2 * CLOCK_SKEW_S
"""And so much earlier, where it lasts long enough: the clocks of the program, of the auth worker
that dates the token, and of the gateway that reads it may be apart."""


class MeshClient:
    """Uses a mesh, as one account.

    Lives on the event loop that it was made on.

    Args:
        worker: a client worker that runs.
        api_key: the account's; None: `login` or `use_key` comes first.
        clock: tells the time.
    """

    def __init__(self, worker: ClientWorker, *, api_key: str | None = None, clock: Clock) -> None:
        self._worker = worker
        self._clock = clock
        self._api_key = api_key
        self._session: auth.Session | None = None
        self._refresh_at = 0.0
        """Unix seconds."""
        self._refreshing: asyncio.Task[auth.Session] | None = None

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return f"MeshClient(logged_in={self._session is not None}, key={self._api_key is not None})"

    @classmethod
    @asynccontextmanager
    async def join(
        cls,
        invitation: str | None = None,
        *,
        data_dir: Path,
        api_key: str | None = None,
        clock: Clock | None = None,
        **settings: Any,
    ) -> AsyncIterator[MeshClient]:
        """Be a client worker of a network while this is entered.

        Args:
            invitation: for a client; needed the first time that a folder is used.
            data_dir: the worker's folder, its own.
            api_key: the account's.
            clock: tells the time.
            settings: more of `MeshConfig`.

        Raises:
            ConfigurationError: the folder is in no network and there is no invitation, or a
                setting is wrong.
            TrustError: the invitation, or the certificate in the folder, does not hold.
            PeerUnreachableError: nobody could be asked to let it in.
        """
        clock = clock or SystemClock()
        config = MeshConfig(data_dir=data_dir, client=ClientConfig(host=None), **settings)
        whole = await enter_network(
            config, Role.CLIENT, invitation=invitation, machine=Machine(clock=clock)
        )
        async with whole:
            worker = whole.inner
            assert isinstance(worker, ClientWorker), "that is what the role is made of"
            yield cls(worker, api_key=api_key, clock=clock)

    # --- the account ----------------------------------------------------------

    async def register(self, email: str, password: str) -> str:
        """Make an account; its id. Log in after.

        Raises:
            TinkerError: the address is taken, or the password too weak.
        """
        made = await self._worker.ask(
            GatewayApi.rpc_register, auth.Register(email=email, password=password)
        )
        return made.account_id

    async def login(self, email: str, password: str) -> None:
        """Begin a session, which speaks for this client until `logout`.

        Raises:
            AuthenticationError: wrong address or password.
            RateLimitError: too many attempts.
        """
        self._begin(
            await self._worker.ask(GatewayApi.rpc_login, auth.Login(email=email, password=password))
        )

    async def logout(self) -> None:
        """End the session, here and in the network. Harmless without one, or once it has ended."""
        if self._session is None:
            return
        with suppress(AuthenticationError):  # it has ended there already
            token = await self._access_token()
            self._session = None
            await self._worker.ask(GatewayApi.rpc_logout, auth.Logout(access_token=token))
        self._session = None

    async def change_password(self, password: str, new_password: str) -> None:
        """Change the account's password; its other sessions end, its API keys stay.

        Raises:
            AuthenticationError: the old password is wrong.
            InputError: the new one is too short or too long.
        """
        request = auth.ChangePassword(
            access_token=await self._access_token(), password=password, new_password=new_password
        )
        await self._worker.ask(GatewayApi.rpc_change_password, request)

    def use_key(self, api_key: str) -> None:
        """Complete with an API key from now on."""
        self._api_key = api_key

    async def create_key(
        self,
        name: str,
        *,
        scopes: Collection[str] = DEFAULT_SCOPES,
        expires_in_s: float | None = None,
        token_cap: int | None = None,
    ) -> auth.CreatedKey:
        """Make an API key; it is shown now and never again."""
        request = auth.CreateKey(
            access_token=await self._access_token(),
            name=name,
            scopes=frozenset(scopes),
            expires_in_s=expires_in_s,
            token_cap=token_cap,
        )
        return await self._worker.ask(GatewayApi.rpc_create_key, request)

    async def keys(self) -> Sequence[auth.KeyInfo]:
        """List the account's keys, newest first."""
        request = auth.ListKeys(access_token=await self._access_token())
        return (await self._worker.ask(GatewayApi.rpc_list_keys, request)).keys

    async def revoke_key(self, key_id: str) -> None:
        """End a key, for good."""
        request = auth.RevokeKey(access_token=await self._access_token(), key_id=key_id)
        await self._worker.ask(GatewayApi.rpc_revoke_key, request)

    async def usage(self, *, since: float = 0.0) -> auth.UsageReport:
        """Say what the account used, and what is left.

        Args:
            since: Unix seconds; entries before are left out.
        """
        request = auth.UsageQuery(credential=await self._credential(), since=since)
        return await self._worker.ask(GatewayApi.rpc_usage, request)

    @property
    def receipts(self) -> Sequence[KeptReceipt]:
        """The latest receipts, which gateways signed and this client countersigned."""
        return tuple(self._worker.completer.receipts)

    # --- models ---------------------------------------------------------------

    async def models(self) -> Sequence[ModelCard]:
        """List the models that the account may name."""
        return await self._worker.completer.models(await self._credential())

    async def complete(self, request: CompletionRequest) -> MeshCompletion:
        """Begin a completion; read its `pieces()`, or `cancel()` it.

        Raises:
            TinkerError: it is refused, or cannot be done now.
        """
        return await self._worker.completer.complete(await self._credential(), request)

    async def count_tokens(self, model: str, prompt: Prompt) -> int:
        """Say how many tokens a prompt has for a model."""
        return await self._worker.completer.count_tokens(await self._credential(), model, prompt)

    async def publish(
        self, name: str, *, base_model: str, content: str, shared: bool = False
    ) -> Published:
        """Make an adapter known, whose files some peer has.

        Args:
            name: what it is to be asked for by.
            base_model: what it is made for.
            content: the hash of its manifest, in hexadecimal.
            shared: whether every account may use it.
        """
        request = PublishAdapter(
            credential=await self._credential(),
            name=name,
            base_model=base_model,
            content=content,
            shared=shared,
        )
        return await self._worker.ask(GatewayApi.rpc_publish, request)

    async def unpublish(self, name: str) -> None:
        """Make an adapter unknown again."""
        request = UnpublishAdapter(credential=await self._credential(), name=name)
        await self._worker.ask(GatewayApi.rpc_unpublish, request)

    # --- credentials ----------------------------------------------------------

    async def _credential(self) -> str:
        return self._api_key if self._api_key is not None else await self._access_token()

    async def _access_token(self) -> str:
        session = self._session
        if session is None:
            raise CredentialError("log in first: this needs the account's session")
        if self._clock.now() >= self._refresh_at:
            if self._refreshing is None:
                self._refreshing = asyncio.create_task(self._refreshed(session), name="refresh")
                self._refreshing.add_done_callback(self._has_refreshed)
            # A refresh token works once: who asks may be called off, and this goes on.
            session = await asyncio.shield(self._refreshing)
        return session.access_token

    async def _refreshed(self, session: auth.Session) -> auth.Session:
        renewed = await self._worker.ask(
            GatewayApi.rpc_refresh, auth.Refresh(refresh_token=session.refresh_token)
        )
        if self._session is session:
            self._begin(renewed)
        return renewed

    def _begin(self, session: auth.Session) -> None:
        lasts_s = session.access_expires_at - self._clock.now()
        before_s = min(REFRESH_BEFORE_S + APART_S, max(REFRESH_BEFORE_S, lasts_s / 2))
        self._session, self._refresh_at = session, session.access_expires_at - before_s

    def _has_refreshed(self, refreshing: asyncio.Task[auth.Session]) -> None:
        self._refreshing = None
        if not refreshing.cancelled():
            refreshing.exception()  # it may be that nobody waits any more
