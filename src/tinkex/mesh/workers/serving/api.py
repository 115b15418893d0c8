"""What a gateway answers: each call of `GatewayApi`, handed to the part that does it.

Owns which credential and scope each call needs. Passwords and tokens of account calls go to an auth
worker and nowhere else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from tinkex._clock import Clock
from tinkex.errors import ConflictError, NotFoundError, RateLimitError, TinkerError, status_error
from tinkex.mesh.accounts.scopes import PUBLISH, READ
from tinkex.mesh.api import auth
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.api.completion import Counted
from tinkex.mesh.api.gateway import (
    Complete,
    CompletionEvent,
    Countersign,
    CountPrompt,
    GatewayApi,
    ListModels,
    MeshModel,
    Models,
    PublishAdapter,
    Published,
    UnpublishAdapter,
)
from tinkex.mesh.api.processor import CountTokens, ProcessorApi, ServedModel
from tinkex.mesh.balancer import Balancer, Offer, Wanted
from tinkex.mesh.catalog import (
    AdapterCatalog,
    AdapterPublished,
    AdapterUnpublished,
    check_publication,
    encode_catalog,
)
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.tasks import let_others_run
from tinkex.mesh.workers.serving.admission import Admission
from tinkex.mesh.workers.serving.auth_calls import AuthCalls, AuthMethod
from tinkex.mesh.workers.serving.bounds import check_request
from tinkex.mesh.workers.serving.completion import CompletionService
from tinkex.mesh.workers.serving.directory import Directory
from tinkex.mesh.workers.serving.ledger import Feed, Ledger
from tinkex.mesh.workers.too_long import told_as_too_long
from tinkex.openai_api.refusal import is_context_length_exceeded, model_not_found

COUNT_ATTEMPTS = 3
COUNT_TIMEOUT_S = 10.0
OWNED_BY = "mesh"
MAX_ADAPTERS = 1000
"""Adapters that one account may have published."""
LISTED_BYTES = 768 * 2**10
"""Of adapters in a list of models, about: one message holds a megabyte, and accounts may share
more adapters than that. One's own come first."""
_MODEL_BYTES = 128
"""Of a model in a list, beside its names."""

T = TypeVar("T", bound=auth.Attempt)
Q = TypeVar("Q", bound=msgspec.Struct)
A = TypeVar("A", bound=msgspec.Struct)


class Gateway(GatewayApi):
    """Answers clients.

    Args:
        completions: serves completions.
        admission: lets requests in.
        ledger: takes countersignatures.
        directory: knows the base models.
        balancer: chooses who counts a prompt.
        catalog: knows the adapters.
        adapters: one's own feed of them.
        auth: asks auth workers.
        peers: calls processors.
        clock: tells the time.
    """

    def __init__(
        self,
        *,
        completions: CompletionService,
        admission: Admission,
        ledger: Ledger,
        directory: Directory,
        balancer: Balancer,
        catalog: AdapterCatalog,
        adapters: Feed,
        auth: AuthCalls,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._completions = completions
        self._admission = admission
        self._ledger = ledger
        self._directory = directory
        self._balancer = balancer
        self._catalog = catalog
        self._adapters = adapters
        self._auth = auth
        self._peers = peers
        self._clock = clock
        self._started = clock.now()
        self.leaving = False
        """Whether new completions are refused, because the worker stops."""

    def rpc_complete(self, request: Complete, call: Call) -> AsyncIterator[CompletionEvent]:
        """Complete a prompt."""
        if self.leaving:
            raise status_error(503, "This gateway is stopping: ask another.", retry_after_ms=0)
        return self._completions.serve(request, call)

    async def rpc_countersign(self, request: Countersign, call: Call) -> auth.Done:
        """Take the client's signature of a receipt into the usage log."""
        await self._ledger.countersign(request, call.peer)
        return auth.Done()

    async def rpc_models(self, request: ListModels, call: Call) -> Models:  # noqa: ARG002 - of the API
        """List the models that a caller may name."""
        caller = await self._admission.caller(request.credential, READ)
        await self._directory.look()
        served = self._directory.models()
        if request.name is not None:
            return Models(tuple(self._named(request.name, caller.account_id, served)))
        found = [self._base_model(name, those) for name, those in sorted(served.items())]
        size = 0
        for adapter in sorted(
            self._catalog.visible(caller.account_id),
            key=lambda one: (one.account_id != caller.account_id, -one.at, one.name),
        ):
            size += _size_of(adapter)
            if size > LISTED_BYTES:
                break
            found.append(self._adapter(adapter, served))
        return Models(tuple(found))

    def _named(
        self, name: str, account_id: str, served: Mapping[str, list[ServedModel]]
    ) -> Iterator[MeshModel]:
        """Give the model that a name stands for, if there is one."""
        if name in served:
            yield self._base_model(name, served[name])
        elif (adapter := self._catalog.resolve(account_id, name).adapter) is not None:
            yield self._adapter(adapter, served)

    def _base_model(self, name: str, those: Sequence[ServedModel]) -> MeshModel:
        return MeshModel(
            name=name,
            base_model=name,
            created=int(self._started),
            owned_by=OWNED_BY,
            max_context_length=max(one.max_context_length for one in those),
            processors=len(those),
        )

    @staticmethod
    def _adapter(adapter: AdapterPublished, served: Mapping[str, list[ServedModel]]) -> MeshModel:
        those = [one for one in served.get(adapter.base_model, ()) if one.adapters]
        return MeshModel(
            name=adapter.name,
            base_model=adapter.base_model,
            created=int(adapter.at),
            owned_by=adapter.account_id,
            max_context_length=max((one.max_context_length for one in those), default=0),
            processors=len(those),
        )

    async def rpc_count_tokens(self, request: CountPrompt, call: Call) -> Counted:
        """Count a prompt's tokens: a request like others, as a processor works for it."""
        caller = await self._admission.caller(request.credential, READ)
        check_request(request.request)
        ticket = self._admission.enter(caller)
        try:
            named, _ = await self._completions.resolve(caller, request.request.model)
            message = CountTokens(
                request=msgspec.structs.replace(request.request, model=named.base_model)
            )
            return await self._counted(message, call)
        finally:
            ticket.leave()

    async def _counted(self, message: CountTokens, call: Call) -> Counted:
        """Have one processor after the other count, until one does."""
        tried: set[PeerId] = set()
        wanted = Wanted(model=message.request.model, excluded=tried, waits=True)
        problem: TinkerError | None = None
        for _ in range(COUNT_ATTEMPTS):
            offer = self._balancer.choose(wanted, self._clock.monotonic())
            if not isinstance(offer, Offer):
                break
            tried.add(offer.peer)
            contact = self._directory.contact(offer.peer)
            left = call.deadline - self._clock.monotonic()
            if contact is None or left <= 0:
                continue
            try:
                with told_as_too_long():
                    return await self._peers.call(
                        contact,
                        ProcessorApi.rpc_count_tokens,
                        message,
                        timeout_s=min(left, COUNT_TIMEOUT_S),
                    )
            except TinkerError as error:
                if is_context_length_exceeded(error):
                    wanted = wanted.beyond(offer)
                elif error.category == "user":
                    raise
                problem = error
        if problem is not None and is_context_length_exceeded(problem):
            raise problem
        raise status_error(503, "No processor could count this prompt: try again.") from problem

    async def rpc_publish(self, request: PublishAdapter, call: Call) -> Published:
        """Make an adapter known."""
        self._admission.take_account_call(call.peer)
        caller = await self._admission.caller(request.credential, PUBLISH)
        check_publication(request.name, request.content)
        context = self._directory.context(request.base_model)
        if context is None and await self._completions.look_for(request.base_model) is None:
            raise model_not_found(f"No processor of this mesh runs {request.base_model!r} now.")
        if self._directory.context(request.name) is not None:
            raise ConflictError(f"{request.name!r} is a base model: choose another name.")
        known = self._catalog.owned(caller.account_id, request.name)
        if known is None and self._catalog.count(caller.account_id) >= MAX_ADAPTERS:
            raise RateLimitError(
                f"An account publishes {MAX_ADAPTERS} adapters at most: unpublish some first."
            )
        event = AdapterPublished(
            account_id=caller.account_id,
            name=request.name,
            at=self._clock.now(),
            base_model=request.base_model,
            content=request.content,
            shared=request.shared,
        )
        await self._adapters.append(encode_catalog(event))
        await let_others_run()  # the catalog is told
        return Published(name=request.name, content=request.content)

    async def rpc_unpublish(self, request: UnpublishAdapter, call: Call) -> auth.Done:
        """Make an adapter unknown again."""
        self._admission.take_account_call(call.peer)
        caller = await self._admission.caller(request.credential, PUBLISH)
        if self._catalog.owned(caller.account_id, request.name) is None:
            raise NotFoundError(f"You have published no adapter {request.name!r}.")
        event = AdapterUnpublished(
            account_id=caller.account_id, name=request.name, at=self._clock.now()
        )
        await self._adapters.append(encode_catalog(event))
        await let_others_run()
        return auth.Done()

    async def rpc_register(self, request: auth.Register, call: Call) -> auth.Registered:
        """Make an account."""
        return await self._pass_on(AuthApi.rpc_register, _from(request, call), call)

    async def rpc_login(self, request: auth.Login, call: Call) -> auth.Session:
        """Begin a session."""
        return await self._pass_on(AuthApi.rpc_login, _from(request, call), call)

    async def rpc_refresh(self, request: auth.Refresh, call: Call) -> auth.Session:
        """Continue a session."""
        return await self._pass_on(AuthApi.rpc_refresh, request, call)

    async def rpc_logout(self, request: auth.Logout, call: Call) -> auth.Done:
        """End a session."""
        return await self._pass_on(AuthApi.rpc_logout, request, call)

    async def rpc_create_key(self, request: auth.CreateKey, call: Call) -> auth.CreatedKey:
        """Make an API key."""
        return await self._pass_on(AuthApi.rpc_create_key, request, call)

    async def rpc_list_keys(self, request: auth.ListKeys, call: Call) -> auth.Keys:
        """List an account's keys."""
        return await self._pass_on(AuthApi.rpc_list_keys, request, call)

    async def rpc_revoke_key(self, request: auth.RevokeKey, call: Call) -> auth.Done:
        """End a key."""
        return await self._pass_on(AuthApi.rpc_revoke_key, request, call)

    async def rpc_close_account(self, request: auth.CloseAccount, call: Call) -> auth.Done:
        """Erase an account."""
        return await self._pass_on(AuthApi.rpc_close_account, _from(request, call), call)

    async def rpc_change_password(self, request: auth.ChangePassword, call: Call) -> auth.Done:
        """Change an account's password."""
        return await self._pass_on(AuthApi.rpc_change_password, _from(request, call), call)

    async def rpc_usage(self, request: auth.UsageQuery, call: Call) -> auth.UsageReport:
        """Say what an account used."""
        return await self._pass_on(AuthApi.rpc_usage, request, call)

    async def _pass_on(self, method: AuthMethod[Q, A], request: Q, call: Call) -> A:
        self._admission.take_account_call(call.peer)
        return await self._auth.ask(method, request, deadline=call.deadline)


def _from(request: T, call: Call) -> T:
    """Say which client asks, whatever it said itself: attempts are counted by it."""
    return msgspec.structs.replace(request, source=call.peer.raw)


def _size_of(adapter: AdapterPublished) -> int:
    names = (adapter.name, adapter.base_model, adapter.account_id)
    return _MODEL_BYTES + sum(len(name.encode()) for name in names)
