"""The words of a foreign server that speaks OpenAI's API: what it is asked, and what it says.

Owns request bodies, the reading of its event stream, and every check of what comes: nothing that a
server sends is believed further than it can be seen. Sans-IO.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from tinkex.errors import EngineBusyError, EngineError, TinkerError, UnsupportedError
from tinkex.openai_api.completer import (
    OPTION_FIELDS,
    ChatPrompt,
    CompletionRequest,
    FinishReason,
    Piece,
    TextPrompt,
    Token,
    ToolCall,
)
from tinkex.openai_api.refusal import context_length_exceeded, refused

LONGEST_LINE = 2**20
ERROR_BYTES = 2000
"""Of what a server says when it refuses that are told on."""
RETRY_S = 1.0
"""What callers of a busy server are told, where it does not say."""
LONGEST_RETRY_S = 300.0
UNKNOWN_TOKEN = -1
"""Stands for a token whose id nobody knows: foreign servers send text."""
_REASONS: Mapping[str, FinishReason] = MappingProxyType(
    {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "eos_token": "stop",
        "stop_sequence": "stop",
    }
)
"""Why a completion ended, as servers say it."""
_TOO_LONG = re.compile(
    "context_length_exceeded|exceed_context_size|(context|maximum model) (length|size|window)",
    re.IGNORECASE,
)
"""In what servers say of a request that does not fit their context: OpenAI's own code is rare."""
_FILTERED = "content_filter"
_BYTES_A_TOKEN = 4
"""An estimate, where a server does not count a prompt before it answers."""
_TEMPLATE_TOKENS = 512
"""That a chat template may add."""


def estimated_tokens(request: CompletionRequest, context: int) -> int:
    """Estimate the tokens of a prompt, by its bytes."""
    if isinstance(request.prompt, TextPrompt):
        size = len(request.prompt.text.encode())
    elif isinstance(request.prompt, ChatPrompt):
        said = (str(message.get("content", "")) for message in request.prompt.messages)
        size = sum(len(text.encode()) for text in said)
    else:
        return max(1, len(request.prompt.tokens))
    return max(1, min(context, -(-size // _BYTES_A_TOKEN)))


def check_supported(request: CompletionRequest) -> None:
    """Refuse what a foreign server cannot be trusted to do as asked, instead of losing it.

    Raises:
        UnsupportedError: naming the field.
    """
    prompt = request.prompt
    refused = {
        "echo": request.echo,
        "prompt_logprobs": request.prompt_logprobs,
        "logprobs": request.top_logprobs > 0,
        "top_k": request.top_k not in {-1, 0},
        "a prompt of token ids": not isinstance(prompt, TextPrompt | ChatPrompt),
        "max_tokens of 0": request.max_tokens == 0,
    }
    if isinstance(prompt, ChatPrompt):
        refused["continuing the last message"] = prompt.continue_last
        refused |= {name: True for name in prompt.options if name not in OPTION_FIELDS}
    for name, asked in refused.items():
        if asked:
            raise UnsupportedError(
                f"{name} is not supported here: this model runs on a server of another kind, "
                "which may not keep to it. Leave it out, or use a model that tinkex runs itself."
            )


def is_open_ended(request: CompletionRequest, context: int) -> bool:
    """Whether the server itself is to end a reply where its context does.

    It alone knows how long the prompt is: servers refuse a number of tokens that does not fit
    behind it (vLLM, tinkex). For chats none is their default; for plain completions 16 may be.
    """
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        return False
    if request.max_tokens is None:
        return True
    if not request.as_context_allows or request.max_tokens > context:
        return request.as_context_allows
    said = json.dumps([*prompt.messages, *prompt.tools, prompt.options], default=str)
    return len(said) + _TEMPLATE_TOKENS + request.max_tokens > context  # a byte a token, at most


def most_tokens(request: CompletionRequest, context: int, prompt: int, *, open_ended: bool) -> int:
    """Say how many tokens a completion may have at most: what the server is told, if anything.

    How much room there is behind a prompt the server alone knows, so a number that somebody asked
    for is left to it as it is: no estimate shortens a reply that would have had room.

    Args:
        request: what is asked.
        context: tokens that the model takes.
        prompt: how many of them the prompt takes, by an estimate.
        open_ended: whether the server is told no number.

    Raises:
        APIStatusError: 400, more are asked for than the whole context has.
    """
    if open_ended:
        return min(request.max_tokens or context, context)
    if request.max_tokens is None or request.as_context_allows:
        room = max(1, context + 1 - prompt)
        return min(request.max_tokens or room, room)
    if request.max_tokens > context:
        raise context_length_exceeded(
            f"This model's context is {context} tokens, and {request.max_tokens} were asked for.",
            "max_tokens",
        )
    return request.max_tokens


def body_of(request: CompletionRequest, model: str, index: int) -> tuple[str, dict[str, Any]]:
    """Make (path, body) of the request for one completion.

    Args:
        request: what is asked.
        model: what the server calls its model.
        index: which of the `n`; each is asked for by itself, as not all servers know `n`.

    `max_tokens` is left to the server where it is to be `as_context_allows`, and so is what nobody
    asked for: a server knows how its model is to be sampled from.
    """
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked = {"temperature": request.temperature, "top_p": request.top_p}
    body |= {name: value for name, value in asked.items() if value is not None}
    if not request.as_context_allows:
        body["max_tokens"] = request.max_tokens
    # Nothing is gone on with at such a server. But one that samples all that name no seed with the
    # same would make several completions alike.
    if request.seed is not None and (request.n > 1 or not request.seed_drawn):
        body["seed"] = (request.seed + index) % 2**31
    if request.stop:
        body["stop"] = list(request.stop)
    if isinstance(request.prompt, ChatPrompt):
        body["messages"] = [_message(one) for one in request.prompt.messages]
        if request.prompt.tools:
            body["tools"] = [dict(tool) for tool in request.prompt.tools]
        return "chat/completions", body | dict(request.prompt.options)
    assert isinstance(request.prompt, TextPrompt), "checked by check_supported"
    return "completions", body | {"prompt": request.prompt.text}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Write a message as OpenAI does: arguments of calls are text there."""
    fields = dict(message)
    if fields.get("tool_calls"):
        fields["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _text(call["function"])}}
            for call in fields["tool_calls"]
        ]
    return fields


def _text(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


class EventLines:
    """Cuts the bytes of an event stream into the data of its events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; return the data of the events that are whole now.

        Raises:
            EngineError: a line has no end.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise EngineError("the server behind this processor sends a line without an end")
        lines = [line.strip() for line in lines]
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


@dataclass(slots=True)
class _Call:
    name: str = ""
    arguments: str = ""
    id: str = ""

    def is_whole(self) -> bool:
        """Whether nothing more of it can come."""
        try:
            json.loads(self.arguments)
        except ValueError:
            return False
        return bool(self.name)


@dataclass(slots=True)
class ForeignCompletion:
    """One completion, as a foreign server tells it."""

    index: int
    max_tokens: int
    has_tools: bool
    is_open_ended: bool = False
    """Whether the server was not told `max_tokens`: what comes beyond them is cut off."""
    chunks: int = 0
    """Pieces of text that came: each is a token at least."""
    thoughts: int = 0
    """Pieces of thinking that came: tokens as well, of which nothing is shown."""
    size: int = 0
    """Bytes of text and thinking that came."""
    reason: FinishReason | None = None
    claimed: int = 0
    """Tokens that the server says it made; 0 while it has not said."""
    prompt: int = 0
    """Tokens of the prompt, as the server counts them; 0 while it has not said."""
    cached: int = 0
    done: bool = False
    _half: str = ""
    calls: list[_Call] = field(default_factory=list)
    _numbered: dict[int, _Call] = field(default_factory=dict)
    """The last call of each number that the server gives them."""

    def take(self, data: bytes) -> Piece | None:
        """Read an event; return what can be shown of it.

        Raises:
            EngineError: it makes no sense.
        """
        if self.done:
            return None
        if data == b"[DONE]":
            self.done = True
            return None
        try:
            event = json.loads(data)
            if event.get("error") or event.get("object") == "error":
                raise _failure(event)
            self._usage(event.get("usage"))
            choices = event.get("choices") or ()
            text = self._whole("".join(self._choice(choice) for choice in choices))
            thought = _readable("".join(_thought(choice) for choice in choices))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise EngineError(
                "the server behind this processor sends what is no answer of OpenAI's API"
            ) from None
        if not (text or thought) or self._is_full():
            return None
        self.size += len(text.encode()) + len(thought.encode())
        if not text:
            self.thoughts += 1
            return None
        self.chunks += 1
        return Piece(self.index, text, (_token(text),))

    def _whole(self, text: str) -> str:
        """Keep back half of a character until the other comes: servers that count in UTF-16."""
        text, self._half = self._half + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _readable(text)

    def _is_full(self) -> bool:
        """Whether there is no room for more text; one that has no end then ends here.

        Raises:
            EngineError: the server was told so.
        """
        if self.chunks + self.thoughts < self.max_tokens:
            return False
        if not self.is_open_ended:
            raise EngineError("the server behind this processor sends more than it was asked for")
        self.reason, self.done = "length", True
        return True

    def end(self) -> Piece:
        """Give the last piece, once the stream has ended.

        Tokens that the server counted beyond the pieces that came are believed as far as the text
        and the thinking have bytes for them: some servers think without showing it.

        Raises:
            EngineError: it broke off, or calls no tool though it says so.
        """
        if self.reason is None:
            raise EngineError("the server behind this processor broke off")
        calls = tuple(
            ToolCall(_readable(call.name), _readable(call.arguments) or "{}") for call in self.calls
        )
        written = sum(len(call.arguments) + len(call.name) for call in calls)
        # Marks of a chat's form and the end are tokens without text.
        most = min(self.max_tokens, self.size + written + _MARKS * (1 + len(calls)))
        made = max(self.chunks + self.thoughts, min(self.claimed, most))
        if self.reason == "tool_calls" and not calls:
            raise EngineError("the server behind this processor calls no tool it says to")
        return Piece(
            self.index,
            tokens=tuple(_token("") for _ in range(made - self.chunks)),
            tool_calls=calls,
            # One that was cut off is no call to be made.
            finish_reason="tool_calls" if calls and self.reason != "length" else self.reason,
        )

    def _usage(self, usage: Any) -> None:
        if usage is None:
            return
        claimed, details = usage.get("completion_tokens"), usage.get("prompt_tokens_details") or {}
        claimed = claimed or 0
        prompt, cached = usage.get("prompt_tokens") or 0, details.get("cached_tokens") or 0
        if any(type(count) is not int or count < 0 for count in (claimed, prompt, cached)):
            raise ValueError
        self.claimed, self.prompt, self.cached = claimed, prompt, cached

    def _choice(self, choice: Mapping[str, Any]) -> str:
        """Read a choice; return its text."""
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        for call in (delta or {}).get("tool_calls") or ():
            self._call(call)
        reason = choice.get("finish_reason")
        if reason == _FILTERED:
            raise refused(
                "The server behind this processor withholds the rest of this completion: its "
                "filter of contents says no.",
                code=_FILTERED,
            )
        if reason:  # empty means as little as none
            self.reason = _REASONS[reason]
        if not isinstance(text, str | None):
            raise TypeError
        return text or ""

    def _call(self, call: Mapping[str, Any]) -> None:
        if not self.has_tools:
            raise ValueError
        function = call.get("function") or {}
        name, given = function.get("name") or "", call.get("id") or ""
        number = call.get("index")
        if number is None:  # a name begins another one
            number = len(self.calls) if name else max(0, len(self.calls) - 1)
        if type(number) is not int or not 0 <= number < _MOST_CALLS:
            raise ValueError
        known = self._numbered.get(number)
        # Some servers number each of several calls 0: one that is whole is followed by another.
        if known is None or (name and given != known.id and known.is_whole()):
            if len(self.calls) >= _MOST_CALLS:
                raise ValueError
            known = self._numbered[number] = _Call(id=given)
            self.calls.append(known)
        known.name += name
        known.arguments += function.get("arguments") or ""


def _readable(text: str) -> str:
    """Join the halves of characters, and replace those that have no other half."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _failure(event: Mapping[str, Any]) -> TinkerError:
    """Make the error of an event that is one, as vLLM, llama.cpp or Ollama send it."""
    problem = event.get("error")
    told = problem if isinstance(problem, Mapping) else event
    status = told.get("code")
    if type(status) is not int or not 400 <= status < 500:
        return EngineError("The server behind this processor failed in mid-stream.")
    return failure_of(status, json.dumps(problem or told.get("message"), ensure_ascii=False))


def failure_of(status: int, said: str, *, retry_after_s: float = RETRY_S) -> TinkerError:
    """Make the error of what a server says instead of an answer.

    Args:
        status: the HTTP status of that.
        said: what it says; told on where it is about the request.
        retry_after_s: what callers are told, where it is busy.
    """
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return EngineBusyError(
            "The server behind this processor is busy.", retry_after_ms=retry_after_s * 1000
        )
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
        told = f"The server behind this processor refuses the request: {said[:ERROR_BYTES]}"
        return context_length_exceeded(told, "prompt") if _TOO_LONG.search(said) else refused(told)
    # A wrong key or a model that is gone is the processor's fault, and no other's.
    return EngineError(f"The server behind this processor answers with status {status}.")


def _thought(choice: Mapping[str, Any]) -> str:
    """Read what a model thinks before it answers, by either name that servers have for it."""
    delta = choice.get("delta") or {}
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    return thought if isinstance(thought, str) else ""


_MARKS = 16
_MOST_CALLS = 128


def _token(text: str) -> Token:
    return Token(UNKNOWN_TOKEN, text, text.encode(), None)
