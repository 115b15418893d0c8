"""A completion request in the engine's words: what fits the context, and how to sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tinkex.openai_api.refusal import context_length_exceeded

if TYPE_CHECKING:
    from tinkex.openai_api.completer import CompletionRequest


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The token with which a model ends an answer in a conversation."""

    token: int
    text: str


def fitted(request: CompletionRequest, prompt: int, context: int) -> CompletionRequest:
    """Return a request whose `max_tokens` the context has room for.

    The last token is sampled, but never fed back.

    Args:
        request: what is asked.
        prompt: tokens of its prompt.
        context: tokens that the model takes.

    Raises:
        APIStatusError: there is no room.
    """
    room = context + 1 - prompt
    if room < 1:
        raise context_length_exceeded(
            f"This model's context is {context} tokens; the prompt has {prompt}. Shorten it.",
            "prompt",
        )
    wanted = request.max_tokens or 0
    if wanted <= room:
        return request
    if request.as_context_allows:
        return replace(request, max_tokens=room)
    raise context_length_exceeded(
        f"This model's context is {context} tokens; the prompt has {prompt}, which leaves "
        f"{room} for the completion, and {wanted} were asked for.",
        "max_tokens",
    )


def sampling_fields(request: CompletionRequest, end: TurnEnd | None = None) -> dict[str, Any]:
    """Return the fields of the `SamplingParams` that a request asks for; `tinkex.types` has them.

    Its stops are beside the model's own end.

    Args:
        request: what is asked.
        end: what ends an answer, where the prompt is a conversation.
    """
    stop: list[str] | list[int] = list(request.stop)
    if end is not None:  # by its text beside strings: the two kinds cannot be mixed
        stop = [*request.stop, end.text] if request.stop else [end.token]
    return {
        "max_tokens": None if request.max_tokens is None else max(1, request.max_tokens),
        "seed": request.seed,
        "stop": stop or None,
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_k": -1 if request.top_k == 0 else request.top_k,
        "top_p": 1.0 if request.top_p is None else request.top_p,
    }
