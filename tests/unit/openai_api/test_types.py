"""Requests: what is taken, and that everything else is refused by its name."""

from __future__ import annotations

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as plain_params
import pytest
from pydantic import ValidationError

from tinkex.openai_api.chat_types import ChatRequest
from tinkex.openai_api.completion_types import CompletionsRequest
from tinkex.openai_api.refusal import invalid

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
PLAIN = {"model": "m", "prompt": "Hello"}
OPENAI_FIELDS = [
    *((ChatRequest, CHAT, name) for name in chat_params.CompletionCreateParamsBase.__annotations__),
    *(
        (CompletionsRequest, PLAIN, name)
        for name in plain_params.CompletionCreateParamsBase.__annotations__
    ),
]
DO_SOMETHING = {
    "audio": {"format": "wav", "voice": "x"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [],
    "logit_bias": {"5": 1},
    "modalities": ["text", "audio"],
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -1,
    "service_tier": "flex",
    "store": True,
    "suffix": "x",
    "tool_choice": "required",
    "verbosity": "low",
    "web_search_options": {},
}
NEUTRAL = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "service_tier": "auto",
    "store": False,
    "tool_choice": "auto",
}


def refusal(message, body):
    with pytest.raises(ValidationError) as caught:
        message.model_validate(body)
    error = invalid(caught.value)
    assert error.status_code == 400
    return str(error), error.body["param"], error.body["code"]


@pytest.mark.parametrize(
    ("message", "body", "name"),
    OPENAI_FIELDS,
    ids=[f"{message.__name__}.{name}" for message, _, name in OPENAI_FIELDS],
)
def test_field_of_openais_is_taken_or_refused_by_name(message, body, name):
    if name not in message.model_fields:
        text, param, code = refusal(message, {**body, name: "x"})
        assert (param, code) == (name, "unknown_parameter")
        assert name in text
    if name in DO_SOMETHING:
        text, param, code = refusal(message, {**body, name: DO_SOMETHING[name]})
        assert param == name
        assert code in {"unsupported_parameter", "unknown_parameter"}
    if name in NEUTRAL and name in message.model_fields:
        message.model_validate({**body, name: NEUTRAL[name]})
    if name in message.model_fields and not message.model_fields[name].is_required():
        message.model_validate({**body, name: None})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"unheard_of": 1}, "unheard_of"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": "1"}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, None),
        ({"top_logprobs": 2}, None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"foo-bar": 1}, "foo-bar"),
        ({"str": 1}, "str"),
        ({"stream_options": {"surprise": 1}}, "stream_options.surprise"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": []}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages.0.mood"),
        ({"messages": [{"role": "user", "content": "x", "my mood": 1}]}, "messages.0.my mood"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "a.b": 1}]}]},
            "messages.0.content.0.a.b",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "annotations": [{}]}]},
            "messages.0.annotations",
        ),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ],
)
def test_wrong_value_is_refused_by_the_name_of_its_field(fields, param):
    text, found, _ = refusal(ChatRequest, {**CHAT, **fields})
    assert found == param
    assert text


def test_image_is_refused_as_such():
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    text, param, code = refusal(
        ChatRequest, {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    )
    assert param == "messages.0.content.0.type"
    assert code == "unsupported_parameter"
    assert "'text'" in text


def test_field_called_like_a_type_is_told_beside_another():
    text, _, _ = refusal(ChatRequest, {**CHAT, "str": 1, "foo-bar": 1})
    assert "str: this server knows no such field" in text
    assert "foo-bar: this server knows no such field" in text


def test_many_faults_are_told_in_one_message():
    text, _, _ = refusal(ChatRequest, {**CHAT, **{f"field{n}": 1 for n in range(7)}})
    assert "field0" in text
    assert text.endswith("and 2 more")


@pytest.mark.parametrize(
    "prompt", [[], [[]], ["a", 1], [1, [2]], [1.5], {"text": "a"}, None, [["a"]]]
)
def test_prompt_of_no_known_form_is_refused(prompt):
    _, param, _ = refusal(CompletionsRequest, {"model": "m", "prompt": prompt})
    assert param.startswith("prompt")
