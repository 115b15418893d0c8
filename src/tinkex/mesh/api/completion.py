"""A completion on its way through the mesh: `openai_api`'s request and pieces, as messages.

Owns the translation both ways. `tinkex.openai_api.completer` says what each field means.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import msgspec

from tinkex.openai_api.completer import (
    ChatPrompt,
    CompletionRequest,
    FinishReason,
    Piece,
    Prompt,
    TextPrompt,
    Token,
    TokenPrompt,
    ToolCall,
)

ECHO_BYTES = 128 * 2**10
"""Bytes of tokens, about, after which an echo is cut: one message holds a megabyte, and the prompt
may have more, as may its alternatives."""
_TOKEN_BYTES = 32
"""Of a token beside its text."""


class Confidential(msgspec.Struct, frozen=True):
    """Base of messages whose content is a user's: their reprs show nothing of it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class TextMessage(Confidential, frozen=True, forbid_unknown_fields=True, tag="text"):
    """A text prompt."""

    text: str


class TokensMessage(Confidential, frozen=True, forbid_unknown_fields=True, tag="tokens"):
    """A prompt of token ids."""

    tokens: list[int]


class ChatMessage(Confidential, frozen=True, forbid_unknown_fields=True, tag="chat"):
    """A conversation."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    continue_last: bool = False


PromptMessage = TextMessage | TokensMessage | ChatMessage


class CompletionMessage(Confidential, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A completion request."""

    model: str
    prompt: PromptMessage
    n: int = 1
    max_tokens: int | None = None
    as_context_allows: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = -1
    seed: int | None = None
    seed_drawn: bool = False
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    echo: bool = False
    prompt_logprobs: bool = False


class TokenMessage(Confidential, frozen=True, array_like=True):
    """One token of a piece."""

    token: int
    text: str
    data: bytes
    logprob: float | None
    top: tuple[TokenMessage, ...] = ()
    offset: int = 0


class PieceMessage(Confidential, frozen=True, array_like=True, tag="piece"):
    """One piece of a completion; see `is_sign_of_life` for one that has nothing in it."""

    index: int
    text: str = ""
    tokens: tuple[TokenMessage, ...] = ()
    echo: bool = False
    tool_calls: tuple[tuple[str, str], ...] = ()
    finish_reason: FinishReason | None = None
    stop_string: str | None = None


def is_sign_of_life(piece: PieceMessage) -> bool:
    """Whether a piece says nothing but that who sends it is still at work.

    It is of no completion, whatever its index says.
    """
    return not (
        piece.text
        or piece.tokens
        or piece.echo
        or piece.tool_calls
        or piece.finish_reason
        or piece.stop_string is not None
    )


class Counted(msgspec.Struct, frozen=True):
    """A number of tokens."""

    tokens: int


def prompt_message(prompt: Prompt) -> PromptMessage:
    """Turn a prompt into its message."""
    if isinstance(prompt, TextPrompt):
        return TextMessage(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return TokensMessage(list(prompt.tokens))
    return ChatMessage(
        [dict(message) for message in prompt.messages],
        [dict(tool) for tool in prompt.tools],
        dict(prompt.options),
        prompt.continue_last,
    )


def prompt_of(message: PromptMessage) -> Prompt:
    """Turn a message back into its prompt."""
    if isinstance(message, TextMessage):
        return TextPrompt(message.text)
    if isinstance(message, TokensMessage):
        return TokenPrompt(message.tokens)
    return ChatPrompt(
        messages=message.messages,
        tools=message.tools,
        options=message.options,
        continue_last=message.continue_last,
    )


_SHARED = tuple(
    name for name in CompletionMessage.__struct_fields__ if name not in {"prompt", "stop"}
)
_shared_of = attrgetter(*_SHARED)


def completion_message(request: CompletionRequest) -> CompletionMessage:
    """Turn a request into its message."""
    return CompletionMessage(
        prompt=prompt_message(request.prompt),
        stop=tuple(request.stop),
        **dict(zip(_SHARED, _shared_of(request), strict=True)),
    )


def completion_request(message: CompletionMessage) -> CompletionRequest:
    """Turn a message back into its request."""
    return CompletionRequest(
        prompt=prompt_of(message.prompt),
        stop=message.stop,
        **dict(zip(_SHARED, _shared_of(message), strict=True)),
    )


def piece_message(piece: Piece) -> PieceMessage:
    """Turn a piece into its message."""
    return PieceMessage(
        piece.index,
        piece.text,
        tuple(_token_message(token) for token in piece.tokens),
        piece.echo,
        tuple((call.name, call.arguments) for call in piece.tool_calls),
        piece.finish_reason,
        piece.stop_string,
    )


def piece_messages(piece: Piece) -> Iterator[PieceMessage]:
    """Turn a piece into its message; one that is an echo into several, where it is long.

    Equal echoes are cut equally, so that one which comes again can be told from what follows it.
    """
    if not piece.echo:
        yield piece_message(piece)
        return
    whole, begins, size = piece_message(piece), 0, 0
    for place, token in enumerate(whole.tokens):
        if size > ECHO_BYTES:
            yield _part_of(whole, begins, place)
            begins, size = place, 0
        size += sum(map(_size_of, (token, *token.top)))
    yield _part_of(whole, begins, len(whole.tokens))


def _part_of(whole: PieceMessage, begins: int, ends: int) -> PieceMessage:
    """Cut some tokens out of an echo, and the text that became certain with them."""
    tokens, is_last = whole.tokens, ends == len(whole.tokens)
    until = None if is_last else tokens[ends].offset
    return msgspec.structs.replace(
        whole,
        text=whole.text[tokens[begins].offset if begins else 0 : until],
        tokens=tokens[begins:ends],
        finish_reason=whole.finish_reason if is_last else None,
    )


def _size_of(token: TokenMessage) -> int:
    return _TOKEN_BYTES + len(token.text) + len(token.data)


def piece_of(message: PieceMessage) -> Piece:
    """Turn a message back into its piece."""
    return Piece(
        message.index,
        message.text,
        tuple(_token_of(token) for token in message.tokens),
        echo=message.echo,
        tool_calls=tuple(ToolCall(name, arguments) for name, arguments in message.tool_calls),
        finish_reason=message.finish_reason,
        stop_string=message.stop_string,
    )


def _token_message(token: Token) -> TokenMessage:
    top = tuple(_token_message(other) for other in token.top)
    return TokenMessage(token.token, token.text, token.data, token.logprob, top, token.offset)


def _token_of(message: TokenMessage) -> Token:
    top = tuple(_token_of(other) for other in message.top)
    return Token(message.token, message.text, message.data, message.logprob, top, message.offset)
