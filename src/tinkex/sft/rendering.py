"""Turn conversations into training examples with the tokenizer's own chat template.

Owns which tokens are learned: those the template adds for an assistant message after the header
that a prompt ends with. Owns no template.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkex import types
from tinkex.errors import InputError, MissingPackageError
from tinkex.types import TensorData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tinkex.sft.conversations import Conversation, Message

_PLACE = "\ue000\ue001"
"""Behind an answer while a template renders it: its words may stand in what follows."""


def shifted_datum(tokens: Sequence[int], learned: Sequence[float] | np.ndarray) -> types.Datum:
    """Build a cross-entropy example: position t of `target_tokens` follows position t of the input.

    Args:
        tokens: [N] of the whole text, N >= 2.
        learned: [N] weight of each token as a target; that of the first counts for nothing.

    Shape:
        model_input [N - 1], target_tokens int64 [N - 1], weights float32 [N - 1].
    """
    row = np.asarray(tokens, dtype=np.int64)
    return types.Datum(
        model_input=types.ModelInput.from_ints(row[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": TensorData.from_numpy(row[1:]),
            "weights": TensorData.from_numpy(np.asarray(learned, dtype=np.float32)[1:]),
        },
    )


def datums(
    conversation: Conversation,
    tokenizer: Any,
    max_length: int | None = None,
    on_cut: Callable[[], object] = lambda: None,
) -> list[types.Datum]:
    """Render a conversation: one example, or one for each learned message.

    A template that renders a conversation's beginning as the beginning of the whole gives one
    example with every learned message in it. One that rewrites earlier turns (dropping their
    thoughts, say) gives an example for each learned message, as the model will see it.

    Args:
        conversation: what is rendered.
        tokenizer: a Hugging Face tokenizer with a chat template.
        max_length: tokens kept of an example, from its start; None keeps all.
        on_cut: called for each example that loses tokens to `max_length`.

    Raises:
        InputError: there is no chat template, it refuses the conversation, or there is nothing to
            learn within `max_length`.
    """
    try:
        whole = _tokens(conversation.messages, tokenizer)
        spans = _spans(conversation.messages, tokenizer)
    except InputError as error:
        raise InputError(f"{conversation.place}: {error}") from error
    texts = [(span.text, [span]) for span in spans]
    if all(whole[: len(span.text)] == span.text for span in spans):
        texts = [(whole, spans)]
    found = [_cut(text, learned, conversation, max_length) for text, learned in texts]
    for text, _ in texts:
        if max_length is not None and len(text) > max_length:
            on_cut()
    return found


def prompt(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Render messages up to the point where the assistant speaks."""
    return _tokens(messages, tokenizer, add_generation_prompt=True)


@dataclass(frozen=True, slots=True)
class _Span:
    """A learned message: the tokens from `start` to `end` of the text up to it."""

    text: list[int]
    start: int
    end: int


def _spans(messages: Sequence[Message], tokenizer: Any) -> list[_Span]:
    return [
        _span(messages[: index + 1], tokenizer)
        for index, message in enumerate(messages)
        if message.learned
    ]


def _span(messages: Sequence[Message], tokenizer: Any) -> _Span:
    text = _tokens(messages, tokenizer)
    start = _common(_before(messages, tokenizer), text)
    end = len(text)
    # a template may go on after the end-of-turn token: with a new line that no model has to say
    if tokenizer.eos_token_id in text[start:]:
        end -= text[::-1].index(tokenizer.eos_token_id)
    return _Span(text, start, end)


def _before(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Render what the last message follows: its header is the end of it."""
    if len(messages) > 1:
        return prompt(messages[:-1], tokenizer)
    # Nothing can be rendered of no message: its header is what it shares with any other answer.
    (first,) = messages
    other = "b" if first.content.lstrip().startswith("a") else "a"
    return _tokens([replace(first, content=other)], tokenizer)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning of two texts."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _cut(
    tokens: list[int], spans: Sequence[_Span], conversation: Conversation, max_length: int | None
) -> types.Datum:
    learned = np.zeros(len(tokens), dtype=np.float32)
    for span in spans:
        learned[span.start : span.end] = 1.0
    kept = tokens[:max_length]
    if len(kept) < 2 or not learned[1 : len(kept)].any():
        raise InputError(
            f"{conversation.place}: nothing to learn is left of {len(tokens)} tokens when they are "
            f"cut to {max_length}. Raise the maximum length, or leave the line out."
        )
    return shifted_datum(kept, learned[: len(kept)])


def templated(turns: Sequence[dict[str, str]], tokenizer: Any, **options: Any) -> list[int]:
    """Put `{"role", "content"}` objects through the tokenizer's chat template.

    Raises:
        InputError: there is no chat template, or it refuses them: many know no system message, or
            want users and assistants to take turns.
        MissingPackageError: jinja2 is not installed.
    """
    return list(_applied(turns, tokenizer, tokenize=True, return_dict=False, **options))


def _applied(turns: Sequence[dict[str, str]], tokenizer: Any, **options: Any) -> Any:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "The base model's tokenizer has no chat template: conversations cannot be rendered."
        )
    try:
        from jinja2 import TemplateError  # noqa: PLC0415 - transformers does without, until here
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "Chat templates need the package jinja2: `pip install jinja2`."
        ) from error
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except (TemplateError, TypeError, ValueError, LookupError) as error:
        raise InputError(f"The base model's chat template refuses this: {error}") from error


def turn_end(tokenizer: Any) -> str | None:
    """Return the token that the chat template writes behind an answer; None where it writes none.

    Many a base model's settings name another one as its end, though whoever is trained on its chat
    template ends each answer with this one.
    """
    answer = {"role": "assistant", "content": f"b{_PLACE}"}
    try:
        text = str(_applied([{"role": "user", "content": "a"}, answer], tokenizer, tokenize=False))
    except InputError:
        return None
    behind = text.rpartition(_PLACE)[2].lstrip() if _PLACE in text else ""
    marks = (str(mark) for mark in tokenizer.added_tokens_decoder.values())
    return max((mark for mark in marks if mark and behind.startswith(mark)), key=len, default=None)


def _tokens(messages: Sequence[Message], tokenizer: Any, **options: Any) -> list[int]:
    return templated([_turn(message) for message in messages], tokenizer, **options)


def _turn(message: Message) -> dict[str, str]:
    named = {} if message.name is None else {"name": message.name}
    return {"role": message.role, "content": message.content, **named}
