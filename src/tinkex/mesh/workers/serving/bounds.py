"""What a request may be, and the most that it can cost, before any processor has seen it.

Owns the bounds of a client's message, and the count of tokens that is reserved. A gateway has no
tokenizer: it bounds a prompt by its bytes, of which every token takes one at least, in whichever of
Unicode's forms that tokenizers use they are most.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Literal

import msgspec

from tinkex.mesh.api.completion import ChatMessage, CompletionMessage, TextMessage, TokensMessage
from tinkex.openai_api.refusal import context_length_exceeded, refused, unsupported
from tinkex.openai_api.types import MAX_CHOICES, MAX_STOPS, MAX_TOP_LOGPROBS, SEED_BOUND

SPECIAL_TOKENS = 8
"""Tokens that a tokenizer may add to a text: its beginning, say."""
TEMPLATE_TOKENS = 1024
"""Tokens that a chat template may add to a conversation beside its own bytes: some have a long
system prompt of their own."""
INDENTED = 4
"""How much longer tools, and calls of them, become by the spaces and lines with which templates
write them."""
FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
"""Into which tokenizers turn a text first. Some letters become longer by it, of Hindi for one."""
MAX_STOP_CHARACTERS = 1024
MAX_TOP_K = 2**31 - 1
MAX_TOKENS = 2**31 - 1
"""More than any context has; permits hold the product with `n`."""
BYTES_A_TOKEN = 4
"""An estimate, where nobody counted a prompt."""
MAX_HELD_TOKENS = 1 << 16
"""Tokens of a reply with `prompt_logprobs`, which is held until all of it is there."""


class Cost(msgspec.Struct, frozen=True):
    """The most that a request can cost, in tokens."""

    prompt: int
    exact: bool
    """Whether the prompt has exactly so many."""
    each: int
    """Of each completion."""
    completions: int

    @property
    def completion(self) -> int:
        """Of all completions together."""
        return self.each * self.completions

    @property
    def tokens(self) -> int:
        """In all."""
        return self.prompt + self.completion


def check_request(request: CompletionMessage) -> None:
    """Check what is the same for every model.

    Raises:
        APIStatusError: 400, naming the field.
    """
    if not 1 <= request.n <= MAX_CHOICES:
        raise refused(f"n is {request.n}: it is 1 to {MAX_CHOICES}.", param="n")
    if request.max_tokens is not None and not 0 <= request.max_tokens <= MAX_TOKENS:
        raise refused(f"max_tokens is 0 to {MAX_TOKENS}.", param="max_tokens")
    if request.max_tokens == 0 and not request.echo:
        raise refused("max_tokens 0 needs echo.", param="max_tokens")
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise refused(f"top_logprobs is 0 to {MAX_TOP_LOGPROBS}.", param="top_logprobs")
    temperature, top_p = request.temperature, request.top_p
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise refused("temperature must not be negative.", param="temperature")
    if top_p is not None and not 0 < top_p <= 1:
        raise refused("top_p is above 0 and at most 1.", param="top_p")
    if not -1 <= request.top_k <= MAX_TOP_K:
        raise refused(f"top_k is -1 (all tokens) to {MAX_TOP_K}.", param="top_k")
    if request.seed is not None and not -SEED_BOUND <= request.seed < SEED_BOUND:
        raise refused("seed is a 64-bit integer.", param="seed")
    if len(request.stop) > MAX_STOPS or not all(
        0 < len(stop) <= MAX_STOP_CHARACTERS for stop in request.stop
    ):
        raise refused(
            f"stop is up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters.",
            param="stop",
        )
    if request.prompt_logprobs and not request.echo:
        raise refused("prompt_logprobs needs echo.", param="prompt_logprobs")
    if isinstance(request.prompt, ChatMessage) and request.echo:
        raise unsupported("echo", "A conversation cannot be echoed: leave echo out.")


def cost_of(request: CompletionMessage, context: int) -> Cost:
    """Bound what a request costs on a model of `context` tokens.

    Raises:
        APIStatusError: 400, it can fit into no such model, or its reply cannot be held.
    """
    prompt = request.prompt
    if isinstance(prompt, TokensMessage):
        count, exact = len(prompt.tokens), True
        if count > context:
            raise context_length_exceeded(
                f"This model's context is {context} tokens; the prompt has {count}. Shorten it.",
                "prompt",
            )
    elif isinstance(prompt, TextMessage):
        count, exact = _bytes(prompt.text.encode(), context) + SPECIAL_TOKENS, False
    else:
        count, exact = _bytes_of_chat(prompt, context) + TEMPLATE_TOKENS, False
    room = context + 1  # the last token is sampled, but never fed back
    each = room if request.max_tokens is None else min(request.max_tokens, room)
    cost = Cost(min(count, context), exact, each, request.n)
    if request.prompt_logprobs and (cost.prompt + each) * request.n > MAX_HELD_TOKENS:
        raise unsupported(
            "echo",
            f"A reply with the prompt's logprobs is held whole, up to {MAX_HELD_TOKENS} tokens, "
            f"and this may have {(cost.prompt + each) * request.n}: ask for fewer completions, or "
            "lower max_tokens.",
        )
    return cost


def estimated_prompt(request: CompletionMessage, cost: Cost) -> int:
    """Estimate a prompt's tokens by its bytes: never more than `cost` has for it.

    For a back end that counts a prompt at the end alone, where there is no such end.
    """
    prompt = request.prompt
    if isinstance(prompt, TokensMessage):
        return cost.prompt
    if isinstance(prompt, TextMessage):
        said = [prompt.text]
    else:
        said = [str(message.get("content", "")) for message in prompt.messages]
    size = sum(len(text.encode()) for text in said)
    return max(1, min(cost.prompt, -(-size // BYTES_A_TOKEN)))


def _bytes_of_chat(prompt: ChatMessage, context: int) -> int:
    words = msgspec.json.encode((prompt.messages, prompt.options))
    calls = [calls for one in prompt.messages if (calls := one.get("tool_calls"))]
    tools = msgspec.json.encode([*prompt.tools, *calls])
    return _bytes(words, context) + INDENTED * _bytes(tools, context)


def _bytes(text: bytes, context: int) -> int:
    """Say how long a text can be, in bytes; whatever fills the context is long enough."""
    if text.isascii() or len(text) >= context:
        return len(text)
    whole = text.decode()
    forms = (len(unicodedata.normalize(form, whole).encode()) for form in FORMS)
    return max(len(text), *forms)
