"""Text of a base model: prompts to tokens as `transformers` does it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import tinkex
from tinkex.errors import APIStatusError, ChatTemplateError
from tinkex.openai_api import ChatPrompt, TextPrompt, TokenPrompt, model_text
from tinkex.openai_api.model_text import ModelText
from tinkex.testing.clock import VirtualClock

SPROUT = str(Path(tinkex.__file__).parent / "engine" / "assets" / "sprout")
CHATML = (Path(SPROUT) / "chat_template.jinja").read_text()
TOOLS = """
{%- macro show(m) %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content | trim }}{% endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'hidden' %}{% continue %}{% endif %}
    {{- show(m) }}
    {%- for call in m.tool_calls or [] %}
        {{- '<tool_call>\\n' }}{"name": "{{ call.function.name }}", "arguments": {#- #}
        {{- ' ' }}{{ call.function.arguments | tojson }}}
        {{- '\\n</tool_call>' }}
    {%- endfor %}
    {%- generation %}{{ eos_token }}{% endgeneration %}
    {{- '\\n' }}
{%- endfor %}
{%- if thinking is defined and thinking %}{{ '<think>' }}{% endif %}
{%- if response_format is defined %}{{ response_format.type }}{% endif %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
CONTEXT = 2048
ASK = {"role": "user", "content": " What is 3 plus 4? "}
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 3, "b": "é<"}},
}
TALK = [
    {"role": "system", "content": "Be brief."},
    ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "7", "tool_call_id": "c1"},
]
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SPROUT)


@pytest.fixture
def text(tokenizer, monkeypatch):
    def make(template):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return ModelText("some/model", tokenizer, VirtualClock())

    return make


def refused(error):
    return error.value.body["param"], error.value.body["code"]


@pytest.mark.parametrize(
    ("template", "messages", "tools", "options"),
    [
        (CHATML, [ASK], [], {}),
        (CHATML, [{"role": "system", "content": "Be."}, ASK], [], {}),
        (TOOLS, [ASK], [], {}),
        (TOOLS, TALK, [TOOL, TOOL], {}),
        (TOOLS, TALK, [], {"thinking": True}),
        (TOOLS, [ASK], [], {"response_format": {"type": "json_object"}}),
    ],
)
async def test_conversation_has_the_tokens_of_transformers(
    text, tokenizer, template, messages, tools, options
):
    mine = await text(template).encode(
        ChatPrompt(messages=messages, tools=tools, options=options), CONTEXT
    )
    expected = tokenizer.apply_chat_template(
        messages, tools=tools or None, add_generation_prompt=True, return_dict=False, **options
    )
    assert mine == expected


async def test_text_has_the_tokens_of_transformers(text, tokenizer, monkeypatch):
    some = text(CHATML)
    for words in ("The word", " \U0001f98a<|im_end|>\n", "a" * 50):
        expected = tokenizer.encode(words)
        assert await some.encode(TextPrompt(words), CONTEXT) == expected
        monkeypatch.setattr(model_text, "OFF_LOOP_CHARACTERS", 5)  # now in a thread
        assert await some.encode(TextPrompt(words), CONTEXT) == expected
        chat = ChatPrompt(messages=[{"role": "user", "content": words}])
        assert len(await some.encode(chat, CONTEXT)) > len(expected)


async def test_text_is_whole_though_the_tokenizer_was_saved_with_truncation_and_padding(tmp_path):
    saved = AutoTokenizer.from_pretrained(SPROUT)
    words = "one two three four five six seven eight nine ten"
    expected = saved.encode(words)
    saved.backend_tokenizer.enable_truncation(4)
    saved.backend_tokenizer.enable_padding(length=100)
    saved.save_pretrained(tmp_path)
    loaded = ModelText("some/model", AutoTokenizer.from_pretrained(tmp_path), VirtualClock())
    assert await loaded.encode(TextPrompt(words), CONTEXT) == expected


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", "\\n<|endoftext|>"), "<|endoftext|>"),
        (CHATML.replace("<|im_end|>", ""), None),
        (CHATML.replace("<|im_end|>", "And <|im_end|>"), None),
        ("{{ messages | length }}", None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_end_of_an_answer_is_what_the_template_writes_behind_it(text, tokenizer, template, end):
    some = text(template)
    found = some.turn_end(ChatPrompt(messages=[ASK]))
    if end is None:
        assert found is None
    else:
        assert (found.token, found.text) == (tokenizer.convert_tokens_to_ids(end), end)
    assert some.turn_end(TextPrompt("a")) is None


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (ChatPrompt(messages=[ASK], tools=[TOOL]), "tools"),
        (ChatPrompt(messages=[ASK], options={"reasoning_effort": "low"}), "reasoning_effort"),
        (ChatPrompt(messages=[ASK], options={"response_format": {}}), "response_format"),
        (ChatPrompt(messages=[ASK], options={"thinking": 1}), "chat_template_kwargs.thinking"),
        (ChatPrompt(messages=[ASK], options={"tools": []}), "chat_template_kwargs.tools"),
    ],
)
async def test_what_the_template_does_not_read_is_refused(text, prompt, param):
    with pytest.raises(APIStatusError) as error:
        await text(CHATML).encode(prompt, CONTEXT)
    assert refused(error) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("tokens", "message"), [([], "no tokens"), ([-1], "-1"), ([2**31], str(2**31))]
)
async def test_token_ids_that_are_none_are_refused(text, tokens, message):
    with pytest.raises(APIStatusError, match=message):
        await text(CHATML).encode(TokenPrompt(tokens), CONTEXT)


async def test_model_without_a_template_takes_text_alone(text):
    some = text(None)
    assert await some.encode(TextPrompt("The word"), CONTEXT)
    with pytest.raises(APIStatusError, match="no chat template") as error:
        await some.encode(ChatPrompt(messages=[ASK]), CONTEXT)
    assert refused(error) == ("messages", "unsupported_parameter")


async def test_model_with_two_templates_uses_the_one_for_tools(text):
    some = text({"default": CHATML, "tool_use": TOOLS})
    with_tools = ChatPrompt(messages=TALK, tools=[TOOL])
    assert some.tool_form(with_tools) is not None
    assert await some.encode(with_tools, CONTEXT) != await some.encode(
        ChatPrompt(messages=[ASK]), CONTEXT
    )
    assert some.tool_form(ChatPrompt(messages=[ASK])) is None
    assert some.tool_form(TextPrompt("a")) is None


async def test_text_that_cannot_fit_is_not_even_read(text, monkeypatch):
    some = text(CHATML)
    monkeypatch.setattr(some, "_encode", lambda *_: pytest.fail("it was read"))
    for prompt in (
        TextPrompt("x" * 10**6),
        ChatPrompt(messages=[{"role": "user", "content": "x" * 10**6}]),
    ):
        with pytest.raises(APIStatusError, match="1000") as error:
            await some.encode(prompt, CONTEXT)
        assert refused(error) == ("prompt", "context_length_exceeded")


def test_broken_template_is_told_when_it_is_loaded(text):
    with pytest.raises(ChatTemplateError, match="broken"):
        text("{% if %}")
