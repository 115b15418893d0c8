"""Tokens from the engine as pieces of text: what is shown when, and why it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from server_support import settle
from tokenizers import Tokenizer

import tinkex
from tinkex.engine.sampling.sequence import SampledToken
from tinkex.errors import EngineError
from tinkex.openai_api import CompletionRequest, TokenPrompt
from tinkex.openai_api.tool_calls import FORMS
from tinkex.openai_api.vocabulary import Vocabulary
from tinkex.server.completer.completion import SILENT_TURNS, SampledCompletion
from tinkex.server.futures import FutureStore, Operation
from tinkex.server.sampling.streaming import KEEP_ALIVE_S, TokenStream
from tinkex.types import SampledSequence, SampleResponse

SPROUT = Path(tinkex.__file__).parent / "engine" / "assets" / "sprout" / "tokenizer.json"
TOKENIZER = Tokenizer.from_file(str(SPROUT))
VOCABULARY = Vocabulary(TOKENIZER, TOKENIZER.encode("a").ids[0])
END = TOKENIZER.token_to_id("<|im_end|>")
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def sampled(tokens, reason="stop", sequence=0):
    ends = [None] * (len(tokens) - 1) + [reason]
    return [
        SampledToken(sequence, token, -0.5, None, end)
        for token, end in zip(tokens, ends, strict=True)
    ]


class Run:
    """A completion whose engine is the test."""

    def __init__(self, futures, form=None, **request):
        self.futures = futures
        self.future = futures.open("ada", Operation.SAMPLE)
        self.stream = TokenStream(asyncio.get_running_loop())
        prompt = ids("One two")
        self.completion = SampledCompletion(
            futures,
            self.future,
            self.stream,
            CompletionRequest(model="m", prompt=TokenPrompt(prompt), **request),
            prompt,
            VOCABULARY,
            form,
        )

    def push(self, tokens):
        for token in tokens:
            self.stream.push(token)

    def finish(self, **fields):
        sequence = SampledSequence(stop_reason="stop")
        self.future.complete(SampleResponse(sequences=[sequence], **fields))

    async def all(self, tokens):
        self.push(tokens)
        self.finish(prompt_cache_hit_tokens=1)
        return [piece async for piece in self.completion.pieces()]


@pytest.fixture
def run(timers):
    futures = FutureStore(
        timers,
        delivered_ttl_s=60,
        undelivered_ttl_s=600,
        max_open=9,
        max_request_bytes=10**6,
        max_result_bytes=10**6,
    )
    return lambda form=None, **request: Run(futures, form, **request)


async def test_pieces_come_as_the_tokens_do(run):
    one = run(n=2)
    pieces = one.completion.pieces()
    first, *rest = sampled([*ids("Hi you"), END])
    one.push([first, *sampled(ids("No"), "length", sequence=1)])
    got = [await anext(pieces) for _ in range(2)]
    assert [(piece.index, piece.text, piece.finish_reason) for piece in got] == [
        (0, VOCABULARY.text(first.token), None),
        (1, "No", "length"),
    ]
    waiting = asyncio.ensure_future(anext(pieces))
    await settle()
    assert not waiting.done()
    one.push(rest)
    last = await waiting
    assert (got[0].text + last.text, last.finish_reason) == ("Hi you", "stop")
    assert [token.token for token in last.tokens] == [token.token for token in rest]
    assert [token.offset for token in last.tokens][-1] == len("Hi you")
    one.finish(prompt_cache_hit_tokens=2)
    assert [piece async for piece in pieces] == []
    assert (one.completion.prompt_tokens, one.completion.cached_tokens) == (len(ids("One two")), 2)


async def test_silence_is_broken_by_signs_of_life(run, advance):
    one = run()
    pieces = one.completion.pieces()
    waiting = asyncio.ensure_future(anext(pieces))
    await advance(KEEP_ALIVE_S + 1)
    assert await waiting is None
    one.completion.cancel()
    with pytest.raises(Exception, match="went away"):
        await anext(pieces)


async def test_failure_is_raised_after_what_came(run):
    one = run()
    one.push(sampled(ids("Hi"), None))
    one.future.fail(EngineError("broke"))
    pieces = one.completion.pieces()
    assert (await anext(pieces)).text == "Hi"
    with pytest.raises(EngineError, match="broke"):
        await anext(pieces)


async def test_stop_string_is_named_and_its_tokens_are_counted(run):
    one = run(stop=("llo", "zz"))
    tokens = sampled(ids("Well hello"))
    (piece,) = await one.all(tokens)
    assert (piece.text, piece.finish_reason, piece.stop_string) == ("Well he", "stop", "llo")
    assert len(piece.tokens) == len(tokens)


async def test_text_held_back_is_shown_when_the_length_ends_it(run):
    one = run(stop=("hello there",))
    (piece,) = await one.all(sampled(ids("Well hello"), "length"))
    assert (piece.text, piece.finish_reason, piece.stop_string) == ("Well hello", "length", None)


async def test_call_of_a_tool_is_no_text(run):
    one = run(FORMS[0])
    pieces = await one.all(sampled([*ids("Let me see.\n" + CALL), END]))
    assert "".join(piece.text for piece in pieces).strip() == "Let me see."
    assert [call.name for piece in pieces for call in piece.tool_calls] == ["add"]
    assert pieces[-1].finish_reason == "tool_calls"


async def test_call_that_takes_long_gives_signs_of_life(run):
    one = run(FORMS[0])
    pieces = one.completion.pieces()
    waiting = asyncio.ensure_future(anext(pieces))
    for token in sampled(ids("<tool_call>" + "x y z " * 20), None)[:SILENT_TURNS]:
        assert not waiting.done()
        one.push([token])
        await settle()
    assert await asyncio.wait_for(waiting, 5) is None


async def test_call_that_is_cut_off_is_text(run):
    cut = CALL[:-15]
    one = run(FORMS[0])
    pieces = await one.all(sampled(ids(cut), "length"))
    assert "".join(piece.text for piece in pieces) == cut
    assert pieces[-1].finish_reason == "length"


async def test_prompt_comes_first_when_it_is_wanted(run):
    one = run(echo=True, n=2)
    first, second, *rest = await one.all(
        sampled(ids("a"), "length") + sampled(ids("b"), "length", sequence=1)
    )
    assert [(piece.index, piece.text, piece.echo) for piece in (first, second)] == [
        (0, "One two", True),
        (1, "One two", True),
    ]
    assert [token.logprob for token in first.tokens] == [None] * len(ids("One two"))
    assert [piece.text for piece in rest] == ["a", "b"]


async def test_prompt_is_scored_when_all_is_done(run):
    one = run(echo=True, prompt_logprobs=True, max_tokens=0)
    one.push(sampled(ids("a"), "length"))
    logprobs = np.array([np.nan, *[-1.0] * (len(ids("One two")) - 1)], dtype=np.float32)
    one.finish(prompt_logprobs_np=logprobs)
    (piece,) = [piece async for piece in one.completion.pieces()]
    assert [token.logprob for token in piece.tokens][:2] == [None, -1.0]
    assert (piece.text, piece.finish_reason) == ("One two", "length")
    assert [token.offset for token in piece.tokens] == sorted(t.offset for t in piece.tokens)


async def test_cancelling_stops_the_work_once(run):
    one = run()
    stopped = []
    one.future.on_cancel = lambda: stopped.append(1)
    one.completion.cancel()
    one.completion.cancel()
    assert stopped == [1]
    assert one.future.delivered
