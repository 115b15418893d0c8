"""Pieces of a completion as messages: they can be sent, however long the prompt that they echo."""

from __future__ import annotations

import msgspec
import pytest

from tinkex.mesh.api.completion import piece_message, piece_messages
from tinkex.mesh.rpc.messages import MAX_BODY_BYTES
from tinkex.openai_api.completer import Piece, Token

TEXT = "Grüße 🙂🙃 von überall, こんにちは. "


def echo_of(text, *, top=0, finish_reason="length"):
    """An echo of a token a byte, as `SampledTexts.echo` makes it."""
    other = Token(7, "other", b"other", -1.0)
    tokens = []
    for place, letter in enumerate(text):
        for byte in letter.encode():
            data = bytes([byte])
            shown = letter if len(letter.encode()) == 1 else f"bytes:\\x{byte:02x}"
            tokens.append(Token(byte, shown, data, -0.5, (other,) * top, place))
    return Piece(0, text, tuple(tokens), echo=True, finish_reason=finish_reason)


@pytest.mark.parametrize(("times", "top"), [(900, 0), (40, 20)])
def test_a_long_echo_is_cut_into_messages_that_can_be_sent(times, top):
    echo = echo_of(TEXT * times, top=top)
    assert len(msgspec.msgpack.encode(piece_message(echo))) > MAX_BODY_BYTES
    messages = list(piece_messages(echo))
    assert all(len(msgspec.msgpack.encode(one)) < MAX_BODY_BYTES / 2 for one in messages)
    assert all(one.echo and one.tokens for one in messages)
    assert "".join(one.text for one in messages) == echo.text == TEXT * times
    assert sum((one.tokens for one in messages), ()) == piece_message(echo).tokens
    assert [one.finish_reason for one in messages] == [None] * (len(messages) - 1) + ["length"]


def test_the_text_of_a_cut_echo_goes_with_the_token_that_made_it_certain(monkeypatch):
    monkeypatch.setattr("tinkex.mesh.api.completion.ECHO_BYTES", 0)
    echo = echo_of(TEXT, finish_reason=None)
    messages = list(piece_messages(echo))
    assert len(messages) == len(echo.tokens)
    assert "".join(one.text for one in messages) == TEXT
    for message, token in zip(messages, echo.tokens, strict=True):
        assert (message.tokens[0].token, message.finish_reason) == (token.token, None)
        assert TEXT[token.offset :].startswith(message.text)
    assert any(not one.text for one in messages), "a character of several tokens is whole at last"


def test_any_other_piece_is_one_message():
    tokens = tuple(Token(1, "x" * 100, b"x" * 100, None) for _ in range(2000))
    for piece in (
        Piece(0, "x", tokens),
        Piece(0, "xx", tokens[:2], echo=True),
        Piece(0),
    ):
        assert list(piece_messages(piece)) == [piece_message(piece)]
