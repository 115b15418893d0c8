"""What may follow what a client has: nothing lost, nothing doubled, nothing that was not asked."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mesh_scripted import completion, echo_pieces, pieces, text_of, token_message
from tinkex.errors import PeerProtocolError
from tinkex.mesh.api.completion import ChatMessage, CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.processor import Begun, Ended
from tinkex.mesh.workers.serving.bounds import cost_of
from tinkex.mesh.workers.serving.relay import Relay

CONTEXT = 64


def request(**changes) -> CompletionMessage:
    given = {"model": "m", "prompt": TextMessage("abc"), "max_tokens": 8, "seed": 1}
    return CompletionMessage(**(given | changes))


def begun(tokens: int = 3) -> Begun:
    return Begun(prompt_tokens=tokens, fingerprint="f", deterministic=True)


def relay(**changes) -> Relay:
    message = request(**changes)
    made = Relay(message, cost_of(message, CONTEXT), CONTEXT)
    made.check_begun(begun())
    made.begin(begun())
    return made


def piece(index: int = 0, tokens=(1,), text: str | None = None, **more) -> PieceMessage:
    found = tuple(token_message(token) for token in tokens)
    return PieceMessage(index, text_of(tokens) if text is None else text, found, **more)


def test_pieces_pass_as_they_come_and_are_counted():
    made = relay(n=2)
    assert made.take(piece(0, (1, 2))) == (piece(0, (1, 2)),)
    assert made.take(piece(1, (3,), finish_reason="stop")) == (
        piece(1, (3,), finish_reason="stop"),
    )
    assert made.resume == ((1, 2), (3,))
    assert made.finished == (1,)
    assert made.tokens == 3
    assert not made.complete
    made.take(piece(0, (4,), finish_reason="length"))
    assert made.complete
    assert made.end(Ended(completion_tokens=4, cached_tokens=2)) == ()
    assert made.cached_tokens == 2


SIGN_OF_LIFE = PieceMessage(0)


def test_a_sign_of_life_is_passed_on_and_is_nothing_that_was_sent():
    made = relay()
    assert made.take(SIGN_OF_LIFE) == (SIGN_OF_LIFE,)
    assert not made.sent


def test_a_sign_of_life_may_come_when_the_first_of_several_completions_has_ended():
    made = relay(n=2)
    made.take(piece(0, finish_reason="stop"))
    assert made.take(SIGN_OF_LIFE) == (PieceMessage(1),), "of one that goes on"
    last = piece(1, finish_reason="stop")
    assert made.take(last) == (last,)
    assert made.complete
    assert made.take(SIGN_OF_LIFE) == ()


def test_signs_of_life_before_an_echo_are_no_tokens_that_come_too_early():
    made = relay(echo=True)
    assert made.take(SIGN_OF_LIFE) == (SIGN_OF_LIFE,)
    for echo in echo_pieces(request(echo=True)):
        assert made.take(echo) == (echo,)


def test_signs_of_life_take_no_room_in_a_reply_that_is_held():
    made = relay(echo=True, prompt_logprobs=True, max_tokens=1)
    for _ in range(1000):
        assert made.take(SIGN_OF_LIFE) == (SIGN_OF_LIFE,)
    came = (*echo_pieces(request()), piece(0, finish_reason="length"))
    for one in came:
        made.take(one)
    assert made.end(Ended(completion_tokens=1)) == came
    assert made.complete


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (piece(1), "nobody asked"),
        (piece(-1), "nobody asked"),
        (piece(0, range(9)), "more tokens"),
        (piece(0, echo=True), "echo that nobody"),
        (piece(0, stop_string="x", finish_reason="stop"), "stopped by a string"),
        (piece(0, tool_calls=(("f", "{}"),), finish_reason="tool_calls"), "call of a tool"),
        (piece(0, finish_reason="tool_calls"), "call of a tool"),
        (piece(0, (2**31,), "x"), "numbers make no sense"),
        (
            PieceMessage(0, "a", (msgspec.structs.replace(token_message(1), logprob=math.nan),)),
            "numbers make no sense",
        ),
        (
            PieceMessage(0, "a", (msgspec.structs.replace(token_message(1), offset=-1),)),
            "numbers make no sense",
        ),
    ],
)
def test_what_cannot_follow_is_refused_and_leaves_no_trace(bad, words):
    made = relay()
    made.take(piece(0, (5,)))
    with pytest.raises(PeerProtocolError, match=words):
        made.take(bad)
    assert made.resume == ((5,),)
    assert made.tokens == 1


def test_nothing_may_follow_the_end_of_a_completion():
    made = relay(n=2)
    made.take(piece(0, finish_reason="stop"))
    with pytest.raises(PeerProtocolError, match="has ended"):
        made.take(piece(0))


def test_a_tool_is_called_only_at_the_end_and_only_where_there_are_tools():
    chat = ChatMessage([{"role": "user", "content": "abc"}], [{"type": "function"}])
    made = relay(prompt=chat)
    with pytest.raises(PeerProtocolError, match="before the end"):
        made.take(piece(0, tool_calls=(("f", "{}"),)))
    last = piece(0, tool_calls=(("f", "{}"),), finish_reason="tool_calls")
    assert made.take(last) == (last,)


@pytest.mark.parametrize("claimed", [0, 2, -1])
def test_a_processor_that_claims_other_tokens_than_it_sent_is_caught(claimed):
    made = relay()
    made.take(piece(0, finish_reason="stop"))
    with pytest.raises(PeerProtocolError, match="claims"):
        made.end(Ended(completion_tokens=claimed))
    assert made.complete


def test_more_cached_tokens_than_the_prompt_has_are_a_lie():
    made = relay()
    made.take(piece(0, finish_reason="stop"))
    with pytest.raises(PeerProtocolError, match="cached"):
        made.end(Ended(completion_tokens=1, cached_tokens=4))


def test_a_stream_that_ends_before_its_completions_is_refused():
    made = relay()
    made.take(piece(0))
    with pytest.raises(PeerProtocolError, match="before the completions"):
        made.end(Ended(completion_tokens=1))


def test_a_prompt_is_no_longer_than_its_bytes_and_the_same_everywhere():
    message = request()
    made = Relay(message, cost_of(message, CONTEXT), CONTEXT)
    for impossible in (0, -1, 12):
        with pytest.raises(PeerProtocolError, match="counts"):
            made.check_begun(begun(impossible))
    made.begin(begun(3))
    with pytest.raises(PeerProtocolError, match="another of the same"):
        made.check_begun(begun(4))


def test_a_foreign_back_end_may_say_the_prompts_size_at_the_end_within_the_same_bounds():
    message = request()
    unknown = Begun(prompt_tokens=0, fingerprint="", deterministic=False)
    for told, fits in ((0, False), (3, True), (12, False)):
        made = Relay(message, cost_of(message, CONTEXT), CONTEXT)
        made.check_begun(unknown)
        made.begin(unknown)
        made.take(piece(0, finish_reason="stop"))
        ended = Ended(completion_tokens=1, prompt_tokens=told)
        if fits:
            made.end(ended)
            assert made.prompt_tokens == told
        else:
            with pytest.raises(PeerProtocolError, match="counts"):
                made.end(ended)


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (Ended(completion_tokens=1, prompt_tokens=3, cached_tokens=4), "cached"),
        (Ended(completion_tokens=1, prompt_tokens=3), "ended its stream"),
    ],
)
def test_what_a_foreign_back_end_says_in_an_end_that_is_refused_binds_no_other(refused, why):
    message = request()
    made = Relay(message, cost_of(message, CONTEXT), CONTEXT)
    unknown = Begun(prompt_tokens=0, fingerprint="", deterministic=False)
    made.check_begun(unknown)
    made.begin(unknown)
    made.take(piece())
    with pytest.raises(PeerProtocolError, match=why):
        made.end(refused)
    made.check_begun(unknown)
    made.begin(unknown)
    made.take(piece(finish_reason="stop"))
    made.end(Ended(completion_tokens=1, prompt_tokens=2))
    assert made.prompt_tokens == 2


def test_the_context_bounds_a_completion_too():
    made = relay(max_tokens=None)
    made.take(piece(0, [1] * (CONTEXT + 1 - 3)))
    with pytest.raises(PeerProtocolError, match="more tokens"):
        made.take(piece())


def test_an_echo_that_comes_again_is_left_out():
    made = relay(echo=True, n=2)
    first, second = echo_pieces(request(echo=True, n=2))
    assert made.take(first) == (first,)
    assert made.resume == (), "nothing was sampled: the next processor starts anew"
    made.begin(begun())
    assert made.take(first) == ()
    assert made.take(second) == (second,)
    assert made.take(piece(1, (7,))) == (piece(1, (7,)),)
    made.begin(begun())
    with pytest.raises(PeerProtocolError, match="too late"):
        made.take(first)


def test_sampling_before_the_echo_is_whole_is_refused():
    made = relay(echo=True, n=2)
    made.take(next(echo_pieces(request(echo=True, n=2))))
    with pytest.raises(PeerProtocolError, match="before the echo"):
        made.take(piece())


def test_an_echo_is_as_long_as_the_prompt():
    long = piece(0, (1, 2, 3, 4), echo=True)
    with pytest.raises(PeerProtocolError, match="more tokens than the prompt"):
        relay(echo=True).take(long)


def test_an_echo_alone_ends_its_completion():
    made = relay(echo=True, max_tokens=0)
    (only,) = echo_pieces(request(echo=True, max_tokens=0))
    assert made.take(only) == (only,)
    assert made.complete
    made.end(Ended(completion_tokens=0))


def test_a_reply_with_prompt_logprobs_is_held_and_starts_anew_after_a_loss():
    changes = {"echo": True, "prompt_logprobs": True, "n": 2, "max_tokens": 4}
    made = relay(**changes)
    message = request(**changes)
    sent = list(pieces(message, (), (), random.Random(1)))
    for one in sent[:5]:
        assert made.take(one) == ()
    assert made.resume == ()
    made.begin(begun())
    for one in sent:
        assert made.take(one) == ()
    assert list(made.end(Ended(completion_tokens=8))) == sent
    assert made.complete
    assert made.tokens == 8


def test_a_held_reply_that_is_garbage_is_forgotten():
    changes = {"echo": True, "prompt_logprobs": True}
    made = relay(**changes)
    made.take(piece(0, (1,)))
    with pytest.raises(PeerProtocolError, match="before the echo"):
        made.end(Ended(completion_tokens=1))
    assert (made.sent, made.tokens, made.complete) == (False, 0, False)
    made.begin(begun())
    for one in pieces(request(**changes), (), (), random.Random(1)):
        made.take(one)
    assert len(made.end(Ended(completion_tokens=8))) > 1


@given(
    n=st.integers(1, 3),
    tokens=st.integers(1, 12),
    echo=st.booleans(),
    cuts=st.lists(st.integers(0, 15), max_size=4),
    seed=st.integers(0, 1000),
)
def test_losing_processors_anywhere_loses_and_doubles_nothing(n, tokens, echo, cuts, seed):
    changes = {"n": n, "max_tokens": tokens, "echo": echo, "seed": seed}
    message, made, rng = request(**changes), relay(**changes), random.Random(seed)
    given_to_client: list[PieceMessage] = []
    for cut in [*cuts, None]:
        made.begin(begun())
        for place, one in enumerate(pieces(message, made.resume, made.finished, rng)):
            if place == cut:
                break
            given_to_client += made.take(one)
        if made.complete:
            break
    assert made.complete
    for index in range(n):
        mine = [one for one in given_to_client if one.index == index]
        sampled = [one for one in mine if not one.echo]
        expected = completion(message, index, tokens)
        assert [token.token for one in sampled for token in one.tokens] == expected
        assert "".join(one.text for one in sampled) == text_of(expected)
        assert [one.text for one in mine if one.echo] == ["abc"] * echo
        assert [one.finish_reason for one in mine if one.finish_reason] == ["length"]
