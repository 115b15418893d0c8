"""What completes prompts: the one thing that this face needs, and the words the two share.

Owns the protocol and its messages. Knows no HTTP and no JSON; how a prompt becomes tokens is the
completer's business, because only it has the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

FinishReason = Literal["stop", "length", "tool_calls"]
"""`stop`: the model ended, or a stop string came; `length`: `max_tokens`, or the context's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model that the caller may name."""

    name: str
    """As in a request's `model`."""
    created: int
    """Unix time, in seconds."""
    owned_by: str
    base_model: str
    """The base model's id: the name itself, unless it is an alias or a checkpoint."""
    max_context_length: int
    """Tokens of prompt and completion together."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text, as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids."""

    tokens: Sequence[int]


OPTION_FIELDS = frozenset({"reasoning_effort", "response_format"})
"""Options of a `ChatPrompt` that requests have fields for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, for the model's own chat template."""

    messages: Sequence[Mapping[str, Any]]
    """Each with `role` and `content` (text), and what else the role has: `name`, `tool_calls` with
    arguments as objects, `tool_call_id`."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the model may call, in OpenAI's form."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the template; one that the template does not read is refused."""
    continue_last: bool = False
    """Whether the completion goes on with the last message instead of answering it."""


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """Complete one prompt, `n` times."""

    model: str
    prompt: Prompt
    n: int = 1
    max_tokens: int | None = None
    """Most tokens of each completion; None goes to the end of the context. 0 gives none."""
    as_context_allows: bool = False
    """Whether `max_tokens` is lowered to what the context leaves, instead of refused."""
    temperature: float | None = None
    """None: nobody asked for one; 1 where tinkex samples, and a foreign server's own default."""
    top_p: float | None = None
    """As above."""
    top_k: int = -1
    """-1: all tokens."""
    seed: int | None = None
    seed_drawn: bool = False
    """Whether nobody asked for the seed: it was drawn, so that others can go on with the same."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion, beside the model's own end; they are not part of the text."""
    top_logprobs: int = 0
    """Likeliest tokens to tell of at each sampled position."""
    echo: bool = False
    """Whether each completion begins with the prompt, in pieces of its own."""
    prompt_logprobs: bool = False
    """Whether those have log-probabilities, and `top_logprobs` alternatives; they then come when
    all is done."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token."""

    token: int
    text: str
    """Its own text; `bytes:` and hexadecimal escapes where its bytes are no whole characters."""
    data: bytes
    """UTF-8."""
    logprob: float | None
    """Natural logarithm; None for the first of a prompt, or where it was not asked for."""
    top: tuple[Token, ...] = ()
    """The likeliest tokens at its place, likeliest first."""
    offset: int = 0
    """Characters before it, of the prompt or of what was sampled."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called."""

    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What came of one of the `n` completions since the last piece of it."""

    index: int
    text: str = ""
    """Whole characters, and never a part of a stop string."""
    tokens: tuple[Token, ...] = ()
    """The sampled tokens, each in one piece only; those of a stop are among them."""
    echo: bool = False
    """Whether this is the prompt, before what was sampled."""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason | None = None
    """Set in the last piece of each completion."""
    stop_string: str | None = None
    """Which stop string ended it."""


class Completion(Protocol):
    """A request on its way."""

    @property
    def request_id(self) -> str:
        """Names it, in logs and replies."""

    @property
    def prompt_tokens(self) -> int:
        """Size of the prompt."""

    def pieces(self) -> AsyncIterator[Piece | None]:
        """Give the completions piece by piece; None every few seconds in which nothing comes.

        Raises:
            TinkerError: the request failed.
        """

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed anew; known after the last piece."""

    def cancel(self) -> None:
        """End the sampling: nobody wants what is still to come. Harmless after the end."""


class Completer(Protocol):
    """Completes prompts for callers. What a caller is, is between it and who authenticates."""

    async def models(self, caller: Any) -> Sequence[ModelCard]:
        """List the models that a caller may name."""

    async def model(self, caller: Any, name: str) -> ModelCard:
        """Return one of them.

        Raises:
            APIStatusError: 404, when there is none of this name.
        """

    async def complete(self, caller: Any, request: CompletionRequest) -> Completion:
        """Check a request and begin it.

        Raises:
            APIStatusError: it cannot be done, or not now.
            InputError: something in it is wrong.
        """

    async def count_tokens(self, caller: Any, model: str, prompt: Prompt) -> int:
        """Say how many tokens a prompt has for a model.

        Raises:
            APIStatusError: as of `complete`.
        """
