"""What a processor does: completions under a permit, and telling what it has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator

import msgspec

from tinkex.mesh.api.completion import CompletionMessage, Confidential, Counted, PieceMessage
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call, Last, Service, Unhurried, callable_by


class Work(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A completion that a gateway wants."""

    permit: bytes
    """A `trust.permits.Permit`, signed; its request hash is that of `request`."""
    request: bytes
    """A `CompletionMessage` in msgpack: the bytes that the permit's hash is of."""
    resume: tuple[tuple[int, ...], ...] = ()
    """Of each completion, the tokens that the client has already: sampling goes on after them, and
    gives pieces of what is new alone. Text that those tokens held back belongs to what is new; an
    echo does not. Empty: the client has none of any. Never with `prompt_logprobs`."""
    finished: tuple[int, ...] = ()
    """With `resume`: completions whose last piece the client has: nothing more comes of them."""
    fetch: bytes = b""
    """Where the permit names an adapter: a `trust.permits.BlobPermit` of the gateway for this
    processor, with which it gets the adapter's files if it has none."""


class Begun(Unhurried, frozen=True, array_like=True, kw_only=True, tag="begun"):
    """The first message of a stream: the request was taken."""

    prompt_tokens: int
    """0 where a back end that is not deterministic knows it at the end only."""
    fingerprint: str
    """Of the numerics: equal ones sample equal tokens."""
    deterministic: bool


class Ended(Last, frozen=True, array_like=True, kw_only=True, tag="ended"):
    """The last message of a stream."""

    completion_tokens: int
    """Sampled here, without those of `resume`."""
    cached_tokens: int = 0
    prompt_tokens: int = 0
    """Size of the prompt, where `Begun` did not know it."""


WorkEvent = Begun | PieceMessage | Ended


class Describe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask a processor what it has."""


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A base model that a processor runs."""

    name: str
    max_context_length: int
    """Tokens of prompt and completion together."""
    revision: str
    """Of its weights."""
    backend: str
    """`engine` or `openai`."""
    adapters: bool
    """Whether it can load adapters of the mesh."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a processor has, and how busy it is."""

    models: tuple[ServedModel, ...]
    adapters: tuple[str, ...]
    """Hashes of those that are loaded."""
    fingerprint: str
    """Of its numerics: equal ones sample equal tokens."""
    slots: int
    """Completions that it runs at once."""
    free_slots: int
    """Completions that would run at once if they came now."""
    waiting: int
    """Requests that wait for a slot."""


class CountTokens(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask how many tokens a request's prompt has."""

    request: CompletionMessage


class ProcessorApi(Service):
    """Implemented by the processor worker."""

    service = "processor"
    offered_by = frozenset({Role.PROCESSOR})

    @callable_by({Role.GATEWAY})
    @abstractmethod
    def rpc_complete(self, request: Work, call: Call) -> AsyncIterator[WorkEvent]:
        """Complete a prompt: `Begun`, pieces, `Ended`. Cancelled with the stream."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_describe(self, request: Describe, call: Call) -> Description:
        """Say what is here."""

    @callable_by({Role.GATEWAY})
    @abstractmethod
    async def rpc_count_tokens(self, request: CountTokens, call: Call) -> Counted:
        """Count a prompt's tokens."""
