"""`/messages`: conversations in Anthropic's form.

Owns how a request becomes a prompt for the model's chat template, and the form of replies, events
and errors.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import orjson

from tinkex.openai_api.anthropic_types import (
    AnthropicErrorDetail,
    AnthropicErrorReply,
    InputDelta,
    MessageEvent,
    MessageReply,
    MessageUsage,
    StopDelta,
    TextBlock,
    TextContent,
    TextDelta,
    TokensReply,
    ToolResultBlock,
    ToolUseBlock,
    ToolUseContent,
    text_of,
)
from tinkex.openai_api.completer import ChatPrompt, CompletionRequest
from tinkex.openai_api.events import event, heard
from tinkex.openai_api.refusal import status_of
from tinkex.openai_api.types import sampling_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator

    from tinkex.errors import TinkerError
    from tinkex.openai_api.anthropic_types import (
        AnthropicStop,
        CountTokensRequest,
        MessageParam,
        MessagesRequest,
    )
    from tinkex.openai_api.completer import Completer, Completion, Piece, ToolCall

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
PING = event('{"type":"ping"}', "ping")


class _Blocks:
    """The content of an answer, as events."""

    def __init__(self) -> None:
        self._index = 0
        self._in_text = False

    def add(self, piece: Piece) -> Iterator[bytes]:
        """Give the events of a piece."""
        calls, written = _read_calls(piece.tool_calls)
        for text in (piece.text, written if self._in_text or piece.text else written.lstrip()):
            if text and not self._in_text:
                yield self._start(TextContent(text=""))
                self._in_text = True
            if text:
                yield self._delta(TextDelta(text=text))
        if self._in_text and piece.finish_reason is not None:
            yield self._stop()
        for call in calls:
            yield self._start(_tool_use(call).model_copy(update={"input": {}}))
            yield self._delta(InputDelta(partial_json=call.arguments))
            yield self._stop()

    def _start(self, block: TextContent | ToolUseContent) -> bytes:
        return _event(
            MessageEvent(type="content_block_start", index=self._index, content_block=block)
        )

    def _delta(self, delta: TextDelta | InputDelta) -> bytes:
        return _event(MessageEvent(type="content_block_delta", index=self._index, delta=delta))

    def _stop(self) -> bytes:
        self._index += 1
        return _event(MessageEvent(type="content_block_stop", index=self._index - 1))


class Messages:
    """Answers `/messages`."""

    def __init__(self, completer: Completer) -> None:
        self._completer = completer

    async def count(self, caller: Any, request: CountTokensRequest) -> TokensReply:
        """Count the tokens of a conversation."""
        tokens = await self._completer.count_tokens(caller, request.model, _prompt(request))
        return TokensReply(input_tokens=tokens)

    async def reply(self, caller: Any, request: MessagesRequest) -> MessageReply:
        """Answer when all is done."""
        completion = await self._completer.complete(caller, messages_completion_request(request))
        text, sampled = "", 0
        calls: list[ToolCall] = []
        last: Piece | None = None
        try:
            async for piece in heard(completion.pieces()):
                text += piece.text
                sampled += len(piece.tokens)
                calls += piece.tool_calls
                last = piece
        finally:
            completion.cancel()
        calls, written = _read_calls(calls)
        text = text + written if text else written.lstrip()
        content: list[TextContent | ToolUseContent] = [TextContent(text=text)] if text else []
        content += [_tool_use(call) for call in calls]
        return _message(
            completion,
            request,
            content=content,
            stop_reason=_stop_reason(last, sampled, request),
            stop_sequence=last.stop_string if last else None,
            usage=_usage(completion, sampled),
        )

    async def events(self, caller: Any, request: MessagesRequest) -> AsyncGenerator[bytes, None]:
        """Answer as it comes."""
        completion = await self._completer.complete(caller, messages_completion_request(request))
        blocks = _Blocks()
        last: Piece | None = None
        sampled, started = 0, False
        try:
            async for piece in completion.pieces():
                if not started:  # what fails at once is no stream
                    yield _start(completion, request)
                started = True
                if piece is None:
                    yield PING
                    continue
                last = piece
                sampled += len(piece.tokens)
                for one in blocks.add(piece):
                    yield one
        finally:
            completion.cancel()
        delta = StopDelta(
            stop_reason=_stop_reason(last, sampled, request),
            stop_sequence=last.stop_string if last else None,
        )
        usage = _usage(completion, sampled)
        yield _event(MessageEvent(type="message_delta", delta=delta, usage=usage))
        yield _event(MessageEvent(type="message_stop"))


def messages_completion_request(request: MessagesRequest) -> CompletionRequest:
    """Say what is wanted of the model."""
    return CompletionRequest(
        model=request.model,
        prompt=_prompt(request),
        max_tokens=request.max_tokens,
        as_context_allows=True,
        **sampling_of(request.temperature, request.top_p, request.top_k),
        stop=tuple(request.stop_sequences or ()),
    )


def anthropic_error_body(error: TinkerError) -> dict[str, Any]:
    """Return the body of an error's reply, or of the event that ends a stream."""
    status = status_of(error)
    fallback = "invalid_request_error" if status < 500 else "api_error"
    detail = AnthropicErrorDetail(type=ERROR_TYPES.get(status, fallback), message=str(error))
    return AnthropicErrorReply(error=detail).model_dump()


def anthropic_error_event(error: TinkerError) -> bytes:
    """Write the event that ends a stream which fails."""
    return event(orjson.dumps(anthropic_error_body(error)), "error")


def _prompt(request: CountTokensRequest) -> ChatPrompt:
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": text_of(request.system)})
    for message in request.messages:
        messages += _for_template(message)
    no_tools = request.tool_choice is not None and request.tool_choice.type == "none"
    tools = [] if no_tools else request.tools or []
    return ChatPrompt(
        messages=messages,
        tools=[
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                },
            }
            for tool in tools
        ],
        continue_last=messages[-1]["role"] == "assistant",
    )


def _for_template(message: MessageParam) -> Iterator[dict[str, Any]]:
    """Give a message as chat templates read it: what tools gave are messages of their own."""
    blocks = message.content if isinstance(message.content, list) else []
    texts = [message.content] if isinstance(message.content, str) else []
    calls = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResultBlock):
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text}
    if texts or calls:
        fields: dict[str, Any] = {"role": message.role, "content": "\n".join(texts)}
        yield {**fields, "tool_calls": calls} if calls else fields


def _stop_reason(
    last: Piece | None, sampled: int, request: MessagesRequest
) -> AnthropicStop | None:
    reason = None if last is None else last.finish_reason
    if last is None or reason is None:
        return None
    if reason == "tool_calls":
        return "tool_use" if _read_calls(last.tool_calls)[0] else "end_turn"
    if reason == "stop":
        return "end_turn" if last.stop_string is None else "stop_sequence"
    return "max_tokens" if sampled >= request.max_tokens else "model_context_window_exceeded"


def _usage(completion: Completion, sampled: int) -> MessageUsage:
    cached = completion.cached_tokens
    return MessageUsage(
        input_tokens=completion.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=sampled,
    )


def _message(completion: Completion, request: MessagesRequest, **fields: Any) -> MessageReply:
    return MessageReply(id=f"msg_{completion.request_id}", model=request.model, **fields)


def _start(completion: Completion, request: MessagesRequest) -> bytes:
    usage = MessageUsage(input_tokens=completion.prompt_tokens, output_tokens=0)
    message = _message(completion, request, content=[], stop_reason=None, usage=usage)
    return _event(MessageEvent(type="message_start", message=message))


def _read_calls(calls: Iterable[ToolCall]) -> tuple[list[ToolCall], str]:
    """Divide calls into those that can be read, and the text of the others.

    A model may write what is no JSON object, or be cut off; Anthropic's form has objects alone.
    """
    read, written = [], ""
    for call in calls:
        if _is_object(call.arguments):
            read.append(call)
        else:
            written += f"\n{call.name}({call.arguments})"
    return read, written


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _tool_use(call: ToolCall) -> ToolUseContent:
    return ToolUseContent(
        id=f"toolu_{secrets.token_hex(12)}", name=call.name, input=json.loads(call.arguments)
    )


def _event(content: MessageEvent) -> bytes:
    return event(content.model_dump_json(), content.type)
