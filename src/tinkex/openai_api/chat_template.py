"""A conversation as the text that a model was trained on.

Owns rendering of chat templates, in a sandbox, and knowing which variables a template reads: one
that it does not read would be dropped without a word, so it is refused. Knows no tokens.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinkex.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2.parser import Parser

    from tinkex._clock import Clock

MAX_TEXT = 64 * 2**20
"""Most characters of a rendered conversation."""
_PLACE = "\ue000\ue001"
"""Behind the last message while a template renders it: its own words may stand in what follows."""


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - the base class's form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's template.

    Args:
        source: in Jinja.
        marks: the model's special tokens by the names that templates use (`bos_token`, ...).
        clock: tells the date to templates that write it.

    Raises:
        ChatTemplateError: the source is no template.
    """

    def __init__(self, source: str, marks: Mapping[str, str], clock: Clock) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: _date(clock).strftime(form)
        try:
            self._template = environment.from_string(source)
            self.variables = frozenset(find_undeclared_variables(environment.parse(source)))
        except TemplateError as error:
            raise ChatTemplateError(f"The model's chat template is broken: {error}") from error
        self._marks = dict(marks)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
        generation_prompt: bool = True,
        continue_last: bool = False,
    ) -> str:
        """Render a conversation, up to where the model's answer begins.

        Args:
            messages: with `role` and `content`.
            tools: functions that the model may call.
            options: further variables.
            generation_prompt: whether the answer's beginning is written at the end.
            continue_last: end within the last message, for the model to go on with it.

        Raises:
            ChatTemplateError: the template refuses the conversation, or fails.
        """
        shown = [dict(message) for message in messages]
        if continue_last:
            shown[-1]["content"] = str(shown[-1]["content"]).rstrip() + _PLACE
        variables = {
            **self._marks,
            **(options or {}),
            "messages": shown,
            "tools": [dict(tool) for tool in tools] or None,
            "add_generation_prompt": generation_prompt and not continue_last,
        }
        try:
            text = self._template.render(variables)
        except (TemplateError, TypeError, ValueError, LookupError, OverflowError) as error:
            raise ChatTemplateError(
                f"The model's chat template does not take this conversation: {error}"
            ) from error
        if len(text) > MAX_TEXT:
            raise ChatTemplateError(f"The conversation is above {MAX_TEXT} characters.")
        return _cut_after(text, str(messages[-1]["content"])) if continue_last else text

    def behind_answer(self) -> str:
        """Return what the template writes behind an answer; empty where that cannot be seen."""
        answer = {"role": "assistant", "content": f"b{_PLACE}"}
        try:
            text = self.render([{"role": "user", "content": "a"}, answer], generation_prompt=False)
        except ChatTemplateError:
            return ""
        return text.rpartition(_PLACE)[2] if _PLACE in text else ""


def _cut_after(text: str, last: str) -> str:
    """Cut off what a template writes behind the last message."""
    words = last.strip()
    place = text.rfind(words + _PLACE)
    if not words or place < 0:
        raise ChatTemplateError(
            "The model's chat template does not show the last message as it is, so that the model "
            "cannot go on with it. End the conversation with a message of the user."
        )
    return text[: place + len(words)]


def _date(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.now(), tz=UTC)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as templates expect it, with the options of transformers: no escapes of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)
