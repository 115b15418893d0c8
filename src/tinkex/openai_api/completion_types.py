"""Requests and replies of `/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tinkex.openai_api.types import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    NUMBER_BOUND,
    FaceReply,
    Sampling,
    Usage,
    never,
)

MAX_PROMPTS = 128
DEFAULT_MAX_TOKENS = 16
"""As OpenAI has it for this route."""

Tokens = Annotated[list[int], Field(min_length=1)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Tokens
    | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionsRequest(Sampling):
    """Go on with prompts."""

    prompt: Prompts
    """Text, token ids, or several of the one or the other."""
    max_tokens: Annotated[int, Field(ge=0, lt=NUMBER_BOUND)] | None = None
    """16 unless given; 0 only with `echo`."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Tell each token's log-probability, and those of this many likeliest."""
    echo: bool | None = None
    """Whether the prompt comes back before the completion."""
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Sample this many, return the `n` of the highest log-probability per token."""
    suffix: Annotated[str | None, never("no model here fills in the middle of a text")] = None


class CompletionLogprobs(FaceReply):
    """Figures of each token, in four lists of equal length."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]
    """Characters of `text` before each token."""


class CompletionChoice(FaceReply):
    """One completion."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class CompletionsReply(FaceReply):
    """All completions, or in a stream what came of one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
