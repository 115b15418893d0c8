"""What a request may be, and the most that it costs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import tinkex
from tinkex.errors import BadRequestError
from tinkex.mesh.api.completion import ChatMessage, CompletionMessage, TextMessage, TokensMessage
from tinkex.mesh.workers.serving.bounds import check_request, cost_of


def request(**changes) -> CompletionMessage:
    return CompletionMessage(**({"model": "m", "prompt": TextMessage("hello")} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 0},
        {"n": 129},
        {"max_tokens": -1},
        {"max_tokens": 2**31, "n": 128},
        {"max_tokens": 0},
        {"top_logprobs": 21},
        {"top_logprobs": -1},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0.0},
        {"top_p": math.nan},
        {"top_k": -2},
        {"seed": 2**63},
        {"stop": ("",)},
        {"stop": ("a",) * 5},
        {"stop": ("a" * 1025,)},
        {"prompt_logprobs": True},
        {"echo": True, "prompt": ChatMessage([{"role": "user", "content": "x"}])},
    ],
    ids=str,
)
def test_what_no_model_takes_is_refused_by_name(changes):
    with pytest.raises(BadRequestError) as caught:
        check_request(request(**changes))
    assert caught.value.body["param"] in changes


@pytest.mark.parametrize("top_k", [-2, 2**31])
def test_range_of_top_k_is_told_to_both_sides(top_k):
    with pytest.raises(BadRequestError, match=f"-1 .*to {2**31 - 1}"):
        check_request(request(top_k=top_k))
    check_request(request(top_k=2**31 - 1))


def test_an_ordinary_request_passes():
    check_request(request(n=128, max_tokens=5, top_logprobs=20, seed=-(2**63), stop=("a",) * 4))


def test_a_prompt_of_tokens_is_counted_and_others_are_bounded_by_their_bytes():
    assert cost_of(request(prompt=TokensMessage([1, 2, 3]), max_tokens=4), 100).tokens == 7
    text = cost_of(request(prompt=TextMessage("é" * 10), max_tokens=4, n=3), 100)
    assert (text.prompt, text.exact, text.completion) == (28, False, 12)


def test_a_chat_has_room_for_a_system_prompt_of_its_models_own():
    chat = ChatMessage([{"role": "user", "content": "hi"}])
    assert cost_of(request(prompt=chat, max_tokens=4), 32_768).prompt >= 1000


TEXTS = {
    "hindi": "\u0958" * 50,
    "music": "\U0001d160" * 50,
    "mixed": "a\u0958 " * 50,
    "korean": "한국어 é" * 50,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_has_no_more_tokens_than_its_bound_for_the_shipped_model(text):
    assets = Path(tinkex.__file__).parent / "engine" / "assets" / "sprout"
    counted = len(Tokenizer.from_file(str(assets / "tokenizer.json")).encode(text).ids)
    assert counted <= cost_of(request(prompt=TextMessage(text)), 10_000).prompt
    chat = ChatMessage([{"role": "user", "content": text * 10}])
    assert 10 * counted <= cost_of(request(prompt=chat), 100_000).prompt


def test_an_ordinary_text_costs_its_bytes_whatever_its_script():
    for text in ("plain", "Grüße", "한국어", "こんにちは", "🙂"):
        assert cost_of(request(prompt=TextMessage(text)), 100).prompt == len(text.encode()) + 8


def test_calls_of_tools_in_a_conversation_are_bounded_as_templates_write_them():
    arguments = {"numbers": [1] * 3000}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    chat = ChatMessage([{"role": "assistant", "content": "", "tool_calls": [call]}])
    cost = cost_of(request(prompt=chat), 100_000)
    assert cost.prompt >= len(json.dumps(arguments))


def test_nothing_costs_more_than_the_context():
    cost = cost_of(request(prompt=TextMessage("a" * 1000), n=2), 100)
    assert (cost.prompt, cost.each, cost.tokens) == (100, 101, 302)


def test_a_prompt_that_fits_nowhere_is_refused():
    with pytest.raises(BadRequestError, match="context is 2 tokens"):
        cost_of(request(prompt=TokensMessage([1, 2, 3])), 2)


def test_a_reply_that_is_held_is_bounded():
    with pytest.raises(BadRequestError, match="held whole"):
        cost_of(request(echo=True, prompt_logprobs=True, n=128), 4096)
