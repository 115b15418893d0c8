"""What stands in requests and replies of every route: models, usage, and fields that do nothing.

Owns these messages and the strictness of all: an unknown field is refused by name, and so is a
value that asks for what is not offered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_STOPS = 4
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
SEED_BOUND = 2**63
NUMBER_BOUND = 2**63
"""Whole numbers are below: messages between machines hold no larger ones."""


class FaceRequest(BaseModel):
    """Base of requests: unknown fields are refused, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class FaceReply(BaseModel):
    """Base of replies."""

    model_config = ConfigDict(frozen=True)


def absent() -> Any:
    """Declare an optional field of a reply that is left out when it is None, not null."""
    return Field(default=None, exclude_if=_is_none)


def _is_none(value: object) -> bool:
    return value is None


def only(*values: Any) -> AfterValidator:
    """Accept only the values that ask for nothing; others are refused by name."""
    shown = " or ".join(repr(value) for value in values)

    def check(value: Any) -> Any:
        if value not in values:
            raise PydanticCustomError(
                "unsupported", "not supported here: leave it out, or send {shown}", {"shown": shown}
            )
        return value

    return AfterValidator(check)


def never(why: str) -> AfterValidator:
    """Accept nothing but null: `why` says what there is instead."""

    def check(value: Any) -> Any:
        if value is not None:
            raise PydanticCustomError("unsupported", "not supported here: {why}", {"why": why})
        return value

    return AfterValidator(check)


def _stops(value: Any) -> Any:
    for stop in [value] if isinstance(value, str) else value or []:
        if not stop:
            raise PydanticCustomError("value_error", "a stop string must not be empty")
    return value


NoPenalty = Annotated[float | None, only(None, 0)]
Stop = Annotated[
    str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None, AfterValidator(_stops)
]
"""A string or up to four, at which a completion ends; they are not part of it."""
Seed = Annotated[int, Field(ge=-SEED_BOUND, lt=SEED_BOUND)]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
Temperature = Annotated[float, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=NUMBER_BOUND)]
MaxTokens = Annotated[int, Field(ge=1, lt=NUMBER_BOUND)]


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Return the stop strings of a request."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def sampling_of(
    temperature: float | None, top_p: float | None, top_k: int | None
) -> dict[str, Any]:
    """Return those of a request's fields that say how to sample; what is None keeps its default."""
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    return {name: value for name, value in given.items() if value is not None}


class StreamOptions(FaceRequest):
    """How a stream is to be."""

    include_usage: bool | None = None
    """Whether a last event tells the usage."""
    include_obfuscation: Annotated[bool | None, only(None, False)] = None


class Sampling(FaceRequest):
    """What chat and plain completions have in common."""

    model: str
    """A base model's id or alias, a checkpoint's path, or `<base>;<path>`."""
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop = None
    seed: Seed | None = None
    """Equal seeds, prompts and weights give equal tokens."""
    temperature: Temperature | None = None
    """Divides the logits; 0 always takes the likeliest token. 1 unless given."""
    top_p: TopP | None = None
    top_k: TopK | None = None
    """Choose among the k likeliest tokens; -1 among all. No field of OpenAI's."""
    frequency_penalty: NoPenalty = None
    presence_penalty: NoPenalty = None
    logit_bias: Annotated[dict[str, float] | None, only(None, {})] = None
    user: str | None = None
    """Kept by nobody."""

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to tell the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class PromptTokensDetails(FaceReply):
    """More about the prompt's tokens."""

    cached_tokens: int
    """Those that were not computed anew."""


class Usage(FaceReply):
    """Tokens of a request."""

    prompt_tokens: int
    """Of the prompts, each counted once."""
    completion_tokens: int
    """All that were sampled, those that end a completion included."""
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_of(prompt: int, completion: int, cached: int) -> Usage:
    """Add up a request's tokens."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
    )


class ModelReply(FaceReply):
    """One model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    base_model: str
    max_context_length: int


class ModelListReply(FaceReply):
    """The models that the key may name."""

    object: Literal["list"] = "list"
    data: list[ModelReply]
