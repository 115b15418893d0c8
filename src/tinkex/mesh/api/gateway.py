"""What a gateway does for clients: completions, models, adapters, accounts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator

import msgspec

from tinkex.mesh.api import auth
from tinkex.mesh.api.completion import CompletionMessage, Confidential, Counted, PieceMessage
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call, Hurried, Last, Service, Unhurried, callable_by

_CLIENTS = frozenset({Role.CLIENT})
MAY_BE_DONE = "may_be_done"
"""Code of the 503 where an auth worker may have done what was asked: no other gateway is asked."""
SHARE_IS_USED = "rate_limit_exceeded"
"""Code of the 429 where one gateway's share of a limit is used up: another may have some left."""


class Complete(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A completion that a client wants."""

    credential: str
    """An API key, or an access token."""
    request: CompletionMessage


class Accepted(Unhurried, frozen=True, array_like=True, kw_only=True, tag="accepted"):
    """The first message of a stream: a processor took the request."""

    request_id: str
    prompt_tokens: int
    """0 where it is known at the end only; the receipt has it."""
    reproducible: bool
    """Whether the same seed would give the same tokens again."""


class Resumed(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="resumed"):
    """The processor was lost, and another goes on."""

    reproducible: bool


class Finished(Hurried, frozen=True, array_like=True, kw_only=True, tag="finished"):
    """After the last piece: nothing more comes but the receipt, once what it says is written."""

    prompt_tokens: int
    cached_tokens: int
    """Those of the prompt that were not computed anew."""


class Receipt(Last, frozen=True, array_like=True, kw_only=True, tag="receipt"):
    """The last message of a stream: what is counted, signed by the gateway."""

    body: bytes
    """A `trust.receipts.ReceiptBody` in msgpack."""
    signature: bytes


CompletionEvent = Accepted | PieceMessage | Resumed | Finished | Receipt


class Countersign(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The client agrees with a receipt."""

    body: bytes
    signature: bytes


class ListModels(
    Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """Ask what models there are."""

    credential: str
    name: str | None = None
    """Only the one that a request would name so; None: all."""


class MeshModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked for."""

    name: str
    base_model: str
    created: int
    """Unix seconds: when it was published, or when the gateway started."""
    owned_by: str
    max_context_length: int
    """Tokens of prompt and completion together."""
    processors: int
    """How many could serve it now."""


class Models(msgspec.Struct, frozen=True):
    """The models that a caller may name: of what others share the newest, as far as fits."""

    models: tuple[MeshModel, ...]


class CountPrompt(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask how many tokens a prompt has."""

    credential: str
    request: CompletionMessage


class PublishAdapter(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Make an adapter known that this client holds the files of."""

    credential: str
    name: str
    """1 to 128 letters, digits and `._/-`; asked for as it is, or as `<base model>;<name>`."""
    base_model: str
    content: str
    """The hash of its manifest."""
    shared: bool = False
    """Whether everybody may use it, or its owner's account alone."""


class UnpublishAdapter(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Make an adapter unknown again."""

    credential: str
    name: str


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter is known."""

    name: str
    content: str


class GatewayApi(Service):
    """Implemented by the gateway worker."""

    service = "gateway"
    offered_by = frozenset({Role.GATEWAY})

    @callable_by(_CLIENTS)
    @abstractmethod
    def rpc_complete(self, request: Complete, call: Call) -> AsyncIterator[CompletionEvent]:
        """Complete a prompt: `Accepted`, pieces, `Finished`, `Receipt`."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_countersign(self, request: Countersign, call: Call) -> auth.Done:
        """Take the client's signature of a receipt into the usage log."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_models(self, request: ListModels, call: Call) -> Models:
        """List the models that a caller may name."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_count_tokens(self, request: CountPrompt, call: Call) -> Counted:
        """Count a prompt's tokens."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_publish(self, request: PublishAdapter, call: Call) -> Published:
        """Make an adapter known."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_unpublish(self, request: UnpublishAdapter, call: Call) -> auth.Done:
        """Make an adapter unknown again."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_register(self, request: auth.Register, call: Call) -> auth.Registered:
        """Make an account."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_login(self, request: auth.Login, call: Call) -> auth.Session:
        """Begin a session."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_refresh(self, request: auth.Refresh, call: Call) -> auth.Session:
        """Continue a session."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_logout(self, request: auth.Logout, call: Call) -> auth.Done:
        """End a session."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_create_key(self, request: auth.CreateKey, call: Call) -> auth.CreatedKey:
        """Make an API key."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_list_keys(self, request: auth.ListKeys, call: Call) -> auth.Keys:
        """List an account's keys."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_revoke_key(self, request: auth.RevokeKey, call: Call) -> auth.Done:
        """End a key."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_close_account(self, request: auth.CloseAccount, call: Call) -> auth.Done:
        """Erase an account."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_change_password(self, request: auth.ChangePassword, call: Call) -> auth.Done:
        """Change an account's password."""

    @callable_by(_CLIENTS)
    @abstractmethod
    async def rpc_usage(self, request: auth.UsageQuery, call: Call) -> auth.UsageReport:
        """Say what an account used."""
