"""Requests and replies of `/chat/completions`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from tinkex.openai_api.types import (
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    FaceReply,
    FaceRequest,
    MaxTokens,
    Sampling,
    Usage,
    absent,
    never,
    only,
)


class TextPart(FaceRequest):
    """A piece of text."""

    type: Annotated[str, only("text")]
    """Text only: images, sound and files are refused."""
    text: str


class FunctionCall(FaceRequest):
    """What was called."""

    name: str
    arguments: str
    """A JSON object."""
    parsed_arguments: Any = None
    """As `ChatMessage.parsed`: the arguments, read."""


class MessageToolCall(FaceRequest):
    """A call in a message of the assistant."""

    id: str
    type: Literal["function"]
    function: FunctionCall
    index: int | None = None
    """Its place in the list, which a stream's call has: the list tells it too."""


class ChatMessage(FaceRequest):
    """One message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    """What the assistant called."""
    tool_call_id: str | None = None
    """Which call a `tool` message answers."""
    refusal: Annotated[str | None, never("no model here refuses apart from its text")] = None
    audio: Annotated[None, never("no model here has sound")] = None
    function_call: Annotated[Any, never("use tool_calls")] = None
    annotations: Annotated[list[Any] | None, only(None, [])] = None
    """Nothing here searches the web; OpenAI's package has the field in every reply's message."""
    parsed: Any = None
    """What OpenAI's package read from the content of a message that it joined or parsed."""

    @model_validator(mode="after")
    def _fits_its_role(self) -> ChatMessage:
        if self.tool_calls is not None and self.role != "assistant":
            raise PydanticCustomError("value_error", "only an assistant's message has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise PydanticCustomError(
                "value_error", "a tool's message has a tool_call_id, and no other has"
            )
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("value_error", "the message has no content")
        return self

    @property
    def text(self) -> str:
        """The content as one text; parts stand on lines of their own."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates read it."""
        role = "system" if self.role == "developer" else self.role
        fields: dict[str, Any] = {"role": role, "content": self.text}
        if self.name is not None:
            fields["name"] = self.name
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            fields["tool_calls"] = [_called(call) for call in self.tool_calls]
        return fields


def _called(call: MessageToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:  # what the model wrote is given back to it as it was
        arguments = call.function.arguments
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


class FunctionDefinition(FaceRequest):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    strict: Annotated[bool | None, only(None, False)] = None


class Tool(FaceRequest):
    """A tool that the model may use."""

    type: Literal["function"]
    function: FunctionDefinition


class ResponseFormat(FaceRequest):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class ChatRequest(Sampling):
    """Answer a conversation."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: MaxTokens | None = None
    """Most tokens of the answer; to the end of the context unless given."""
    max_completion_tokens: MaxTokens | None = None
    """The same, by its newer name."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[Any, only(None, "auto", "none")] = None
    parallel_tool_calls: Annotated[bool | None, only(None, True)] = None
    response_format: ResponseFormat | None = None
    """JSON only where the model's chat template takes a `response_format`."""
    reasoning_effort: str | None = None
    """Only where the model's chat template reads it."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables for the model's chat template. No field of OpenAI's."""
    metadata: dict[str, str] | None = None
    """Kept by nobody."""
    safety_identifier: str | None = None
    """As `metadata`."""
    prompt_cache_key: str | None = None
    """As `metadata`: what is cached is found by the tokens."""
    store: Annotated[bool | None, only(None, False)] = None
    service_tier: Annotated[str | None, only(None, "auto", "default")] = None
    modalities: Annotated[list[str] | None, only(None, ["text"])] = None
    verbosity: Annotated[str | None, only(None, "medium")] = None
    prediction: Annotated[Any, never("leave it out")] = None
    audio: Annotated[Any, never("no model here has sound")] = None
    web_search_options: Annotated[Any, never("nothing here searches the web")] = None
    functions: Annotated[Any, never("use tools")] = None
    function_call: Annotated[Any, never("use tool_choice")] = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError(
                "value_error", "give max_tokens or max_completion_tokens, not both"
            )
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("value_error", "top_logprobs needs logprobs: true")
        return self


class TopLogprob(FaceReply):
    """A token that might have stood there."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(FaceReply):
    """Every sampled token, those that end the answer included."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(FaceReply):
    """What the model wants called."""

    name: str
    arguments: str


class ReplyToolCall(FaceReply):
    """A call that the model wants made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class DeltaToolCall(ReplyToolCall):
    """The same in a stream, whole."""

    index: int


class ReplyMessage(FaceReply):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ReplyToolCall] | None = absent()


class ChatChoice(FaceReply):
    """One answer."""

    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatReply(FaceReply):
    """All answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(FaceReply):
    """What came of a message; what did not is absent, as clients add deltas up."""

    role: Literal["assistant"] | None = absent()
    content: str | None = absent()
    tool_calls: list[DeltaToolCall] | None = absent()


class ChunkChoice(FaceReply):
    """What came of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None


class ChatChunk(FaceReply):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
