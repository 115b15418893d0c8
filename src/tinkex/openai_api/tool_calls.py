"""Calls of functions in a model's text.

Owns the forms in which models write calls, and which part of a text may be shown before it is
known whether a call follows. Which form a model has is tried on its own chat template: a form
counts only if it reads back a call that the template wrote, so nothing is guessed from names.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkex.errors import ChatTemplateError
from tinkex.openai_api.completer import ToolCall
from tinkex.openai_api.vocabulary import held_back

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinkex.openai_api.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How one family of models writes calls."""

    opening: str
    """What a call begins with."""
    closing: str
    """What ends it; empty where a call is the whole of the answer."""
    arguments_key: str

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Split a text into (what is said, the calls).

        A text whose calls cannot be read is returned whole, with no call.
        """
        place = self.begins(text)
        calls = () if place is None else self._calls(text[place:])
        return (text[:place].rstrip(), calls) if calls else (text, ())

    def begins(self, text: str) -> int | None:
        """Return where the calls of a text begin, if it may have any."""
        if self.closing:
            place = text.find(self.opening)
            return None if place < 0 else place
        return 0 if text.lstrip().startswith(self.opening) else None

    def certain(self, text: str) -> int:
        """Return how many characters of a growing text are no part of a call."""
        place = self.begins(text)
        if place is not None:
            return place
        if self.closing:
            return len(text) - held_back(text, (self.opening,))
        return len(text) if text.strip() else 0

    def _calls(self, text: str) -> tuple[ToolCall, ...]:
        bodies = [text]
        if self.closing:
            pattern = re.escape(self.opening) + r"(.*?)" + re.escape(self.closing)
            bodies = re.findall(pattern, text, re.DOTALL)
        calls = [self._call(body) for body in bodies]
        return tuple(call for call in calls if call) if all(calls) else ()

    def _call(self, body: str) -> ToolCall | None:
        try:
            value: Any = json.loads(body)
        except ValueError:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get(self.arguments_key)
        if not isinstance(arguments, dict):
            return None
        return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


FORMS = (ToolForm("<tool_call>", "</tool_call>", "arguments"), ToolForm("{", "", "parameters"))
"""That of Hermes and Qwen, and that of Llama 3."""


class ToolText:
    """A growing text of a model that may call functions.

    Args:
        form: how it writes calls.
    """

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._text = ""
        self._shown = 0

    def feed(self, text: str) -> str:
        """Add text; return what is certain to be no call."""
        self._text += text
        certain = self._form.certain(self._text)
        start, self._shown = self._shown, max(self._shown, certain)
        return self._text[start : self._shown]

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """Return (the rest of what is said, the calls)."""
        said, calls = self._form.read(self._text)
        return said[self._shown :], calls


def form_of(template: ChatTemplate, marks: Iterable[str]) -> ToolForm | None:
    """Return the form in which a model writes calls; None where it has none that can be read.

    Args:
        template: the model's.
        marks: its special tokens, which its text does not show.
    """
    if "tools" not in template.variables:
        return None
    ask = {"role": "user", "content": "probe"}
    wanted = ToolCall("probe_tool", json.dumps({"probe_key": "probe value"}))
    function = {"name": wanted.name, "arguments": json.loads(wanted.arguments)}
    call = {"id": "probe0001", "type": "function", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    schema = {"type": "object", "properties": {"probe_key": {"type": "string"}}}
    described = {"name": wanted.name, "description": "A probe.", "parameters": schema}
    tools = [{"type": "function", "function": described}]
    try:
        before = template.render([ask], tools=tools)
        after = template.render([ask, answer], tools=tools, generation_prompt=False)
    except ChatTemplateError:
        return None
    written = after[_common(before, after) :]
    for mark in marks:
        written = written.replace(mark, "")
    return next((form for form in FORMS if form.read(written.strip())[1] == (wanted,)), None)


def _common(first: str, second: str) -> int:
    """Return the length of the longest common beginning."""
    size = 0
    while size < min(len(first), len(second)) and first[size] == second[size]:
        size += 1
    return size
