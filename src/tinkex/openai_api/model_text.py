"""Text to tokens and back, for one base model.

Owns the way of a prompt through chat template and tokenizer, and what is refused where a model has
no template. Whoever has the model loads its tokenizer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkex.openai_api.chat_template import ChatTemplate
from tinkex.openai_api.completer import OPTION_FIELDS, ChatPrompt, TextPrompt
from tinkex.openai_api.refusal import context_length_exceeded, refused, unsupported
from tinkex.openai_api.sampling import TurnEnd
from tinkex.openai_api.tool_calls import ToolForm, form_of
from tinkex.openai_api.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex._clock import Clock
    from tinkex.openai_api.completer import Prompt

OFF_LOOP_CHARACTERS = 16 * 2**10
"""A text above this is encoded in a thread."""
LARGEST_TOKEN = 2**31
SHRINKAGE = 4
"""Times that a tokenizer may make a text shorter before it looks for tokens in it."""
RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
"""Variables of a template that have fields of their own."""


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template, how its model writes calls, and the token that ends an answer in it."""

    template: ChatTemplate
    tool_form: ToolForm | None
    turn_end: TurnEnd | None


class ModelText:
    """What a base model's tokenizer does.

    Args:
        name: of the base model, for messages.
        tokenizer: a fast tokenizer of `transformers`.
        clock: tells the date to chat templates that write it.

    Raises:
        ChatTemplateError: its chat template is broken.
    """

    def __init__(self, name: str, tokenizer: Any, clock: Clock) -> None:
        self._name = name
        self._backend = tokenizer.backend_tokenizer
        # Many a tokenizer.json keeps those of the batches that its model was trained on.
        self._backend.no_truncation()
        self._backend.no_padding()
        anchor = self._backend.encode("a", add_special_tokens=False).ids
        self._longest = max(map(len, self._backend.get_vocab()), default=1)
        self.vocabulary = Vocabulary(self._backend, anchor[-1] if anchor else 0)
        sources = tokenizer.chat_template or {}
        if isinstance(sources, str):
            sources = {"default": sources}
        marks = {
            key: value
            for key, value in tokenizer.special_tokens_map.items()
            if isinstance(value, str)
        }
        added = self._backend.get_added_tokens_decoder()
        hidden = [entry.content for entry in added.values() if entry.special]
        ends = [TurnEnd(token, entry.content) for token, entry in added.items() if entry.content]
        self._templates = {
            kind: Template(template, form_of(template, hidden), _turn_end(template, ends))
            for kind, source in sources.items()
            if (template := ChatTemplate(source, marks, clock))
        }

    async def encode(self, prompt: Prompt, context: int) -> list[int]:
        """Return the tokens of a prompt.

        Args:
            prompt: in any form.
            context: most tokens that are of use; what is sure to have many times more is not read.

        Raises:
            APIStatusError: the model has no template, or not what it would need; no tokens, or
                far too many.
            ChatTemplateError: the template does not take the conversation.
        """
        if isinstance(prompt, ChatPrompt):
            text, special = await self._render(prompt), False
        elif isinstance(prompt, TextPrompt):
            text, special = prompt.text, True
        else:
            return _checked(prompt.tokens)
        most = SHRINKAGE * context * self._longest
        if len(text) > most:
            raise context_length_exceeded(
                f"This model's context is {context} tokens; the prompt has {len(text)} characters. "
                "Shorten it.",
                "prompt",
            )
        if len(text) > OFF_LOOP_CHARACTERS:
            tokens = await asyncio.to_thread(self._encode, text, special)
        else:
            tokens = self._encode(text, special)
        return _checked(tokens)

    def tool_form(self, prompt: Prompt) -> ToolForm | None:
        """Return how the model writes calls, where a prompt lets it call."""
        if not isinstance(prompt, ChatPrompt) or not prompt.tools:
            return None
        return self._template(prompt).tool_form

    def turn_end(self, prompt: Prompt) -> TurnEnd | None:
        """Return the token with which a conversation's answer ends; None where there is none.

        Many a base model's settings name another one as its end, though whoever is trained on its
        chat template ends each answer with this one.
        """
        return self._template(prompt).turn_end if isinstance(prompt, ChatPrompt) else None

    def _encode(self, text: str, special: bool) -> list[int]:
        tokens: list[int] = self._backend.encode(text, add_special_tokens=special).ids
        return tokens

    async def _render(self, prompt: ChatPrompt) -> str:
        chosen = self._template(prompt)
        template = chosen.template
        if prompt.tools and chosen.tool_form is None:
            raise unsupported(
                "tools",
                f"{self._name} has no tools: its chat template takes none, or writes calls in a "
                "form that this server does not read.",
            )
        for option in prompt.options:
            if option in RESERVED or option not in template.variables:
                raise unsupported(
                    option if option in OPTION_FIELDS else f"chat_template_kwargs.{option}",
                    f"{option} is not supported by {self._name}: its chat template does not read "
                    "it. Leave it out.",
                )

        def render() -> str:
            return template.render(
                prompt.messages,
                tools=prompt.tools,
                options=prompt.options,
                continue_last=prompt.continue_last,
            )

        size = sum(len(message["content"]) for message in prompt.messages)
        return await asyncio.to_thread(render) if size > OFF_LOOP_CHARACTERS else render()

    def _template(self, prompt: ChatPrompt) -> Template:
        names = ("tool_use", "default") if prompt.tools else ("default",)
        for name in names:
            if name in self._templates:
                return self._templates[name]
        raise unsupported(
            "messages",
            f"{self._name} has no chat template: render the conversation yourself, and send it to "
            "/completions.",
        )


def _turn_end(template: ChatTemplate, marks: Sequence[TurnEnd]) -> TurnEnd | None:
    """Find the mark that a template writes first behind an answer."""
    behind = template.behind_answer().lstrip()
    found = [mark for mark in marks if behind.startswith(mark.text)]
    return max(found, key=lambda mark: len(mark.text), default=None)


def _checked(tokens: Sequence[int]) -> list[int]:
    if not tokens:
        raise refused("The prompt has no tokens.", param="prompt", code="invalid_value")
    for token in tokens:
        if not 0 <= token < LARGEST_TOKEN:
            raise refused(
                f"{str(token)[:40]} is no token id.", param="prompt", code="invalid_value"
            )
    return list(tokens)
