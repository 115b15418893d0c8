"""Calls of functions: which models write them readably, and reading them."""

import json

import pytest

from tinkex.openai_api.chat_template import ChatTemplate
from tinkex.openai_api.completer import ToolCall
from tinkex.openai_api.tool_calls import FORMS, ToolText, form_of
from tinkex.testing.clock import VirtualClock

CLOCK = VirtualClock()

HERMES, LLAMA = FORMS
HEAD = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
)
TAIL = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
AS_HERMES = (
    HEAD
    + "{% for c in m.tool_calls %}<tool_call>\n"
    + '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    + "\n</tool_call>{% endfor %}"
    + TAIL
)
AS_LLAMA = (
    HEAD
    + "{% for c in m.tool_calls %}"
    + '{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
    + "{% endfor %}"
    + TAIL
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = ToolCall("add", json.dumps({"a": 1}))


@pytest.mark.parametrize(
    ("source", "form"),
    [
        (AS_HERMES, HERMES),
        (AS_LLAMA, LLAMA),
        (HEAD + TAIL, None),  # tools are shown, but calls are not written
        (AS_HERMES.replace("<tool_call>", "<invoke>"), None),
        (AS_HERMES.replace("tools", "instruments"), None),
        ("{% if tools %}{{ raise_exception('no') }}{% endif %}" + AS_HERMES, None),
    ],
)
def test_form_counts_only_if_it_reads_what_the_template_writes(source, form):
    assert form_of(ChatTemplate(source, {}, CLOCK), ["<|end|>"]) is form


def test_calls_marked_by_tokens_that_the_text_does_not_show_are_no_form():
    marks = ["<|end|>", "<tool_call>"]
    assert form_of(ChatTemplate(AS_HERMES, {}, CLOCK), marks) is None


@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        (HERMES, "Let me see.\n" + CALL, "Let me see.", (ADD,)),
        (HERMES, CALL + "\n" + CALL, "", (ADD, ADD)),
        (HERMES, "no call", "no call", ()),
        (HERMES, "<tool_call>\n{broken\n</tool_call>", None, ()),
        (HERMES, '<tool_call>{"name": "add"}</tool_call>', None, ()),
        (HERMES, '<tool_call>[{"name": "add"}]</tool_call>', None, ()),
        (HERMES, CALL.removesuffix("</tool_call>"), None, ()),
        (LLAMA, '{"name": "add", "parameters": {"a": 1}}', "", (ADD,)),
        (LLAMA, 'I say {"name": "add", "parameters": {}}', None, ()),
        (LLAMA, '{"answer": 4}', None, ()),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_reading_in_pieces_gives_what_is_said_and_the_calls(form, text, said, calls, step):
    growing = ToolText(form)
    shown = "".join(growing.feed(text[at : at + step]) for at in range(0, len(text), step))
    rest, found = growing.finish()
    assert found == calls
    if said is None:
        assert shown + rest == text
    else:
        assert (shown + rest).rstrip() == said


def test_nothing_of_a_call_is_shown():
    growing = ToolText(HERMES)
    assert growing.feed("Yes <tool") == "Yes "
    assert growing.feed("s>") == "<tools>"
    assert growing.feed(CALL) == ""
    assert growing.finish() == ("", (ADD,))
