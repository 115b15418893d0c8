"""Frames and greetings: what we write is read again, and nothing else is."""

import msgspec
import pytest

from tinkex.errors import PeerProtocolError
from tinkex.mesh.rpc.messages import (
    MAX_MESSAGES,
    VERSION,
    Bye,
    Cancel,
    Credit,
    End,
    Failed,
    Hello,
    Items,
    Leave,
    Part,
    Ping,
    Pong,
    Refused,
    Request,
    Response,
    WireError,
    decode_frame,
    decode_greeting,
    encode_frame,
    encode_greeting,
)

ERROR = WireError("NotFoundError", ("no such thing",), "user", 1.5, "r", 404)
MESSAGES = [
    Request(1, "auth.login", 30_000, 0, "", b"body"),
    Response(1, b"body"),
    Items(2, (b"one", b"two")),
    End(2),
    Failed(3, ERROR),
    Cancel(4),
    Credit(5, 1000),
    Ping(6),
    Pong(7),
    Leave(True),
    Bye(),
    Part(8, True, b"beginning"),
]
HELLO = Hello(VERSION, bytes(32), None, bytes(8), 10, 1000)

encode = msgspec.msgpack.encode


def test_frame_of_every_message_is_read_again():
    assert decode_frame(encode_frame(MESSAGES)) == MESSAGES


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        encode([]),
        encode(MESSAGES)[:-1],
        encode(MESSAGES) + b"x",
        encode([Ping(1)] * (MAX_MESSAGES + 1)),
        encode([[99, 1]]),
        encode([[8]]),
        encode([[8, 1, 1]]),
        encode([[8, 0]]),
        encode([[8, -1]]),
        encode([[8, 2**60]]),
        encode([[8, True]]),
        encode([[8, "1"]]),
        encode([[3, 1, []]]),
        encode([[7, 1, 0]]),
        encode([[1, 1, "m" * 129, 1, 0, "", b""]]),
        encode([[1, 1, "m", 1, 0, "t" * 65, b""]]),
        encode([[1, 1, "m", 86_400_001, 0, "", b""]]),
        encode([[2, 1, "text, not bytes"]]),
        encode([[5, 1, ["E", ["x" * 5000], "user", None, None, None]]]),
        encode([[5, 1, ["E", [], "user", None, None, None]]]),
        encode([[5, 1, ["E", ["x"], "nobody", None, None, None]]]),
        encode([[5, 1, ["E", ["x"], "user", float("nan"), None, None]]]),
        encode([[5, 1, ["E", ["x"], "user", None, None, 9]]]),
        encode([["tinkex-hello", 1]]),
        encode({"a": 1}),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x91\x92\x02\xa1\xff",
    ],
)
def test_anything_else_is_no_frame(frame):
    with pytest.raises(PeerProtocolError):
        decode_frame(frame)


@pytest.mark.parametrize("greeting", [HELLO, Refused(VERSION, ERROR)])
def test_greeting_is_read_again(greeting):
    assert decode_greeting(encode_greeting(greeting)) == greeting


def test_greeting_of_a_later_version_is_named_whatever_else_it_holds():
    with pytest.raises(PeerProtocolError, match=r"version 2 .* version 1"):
        decode_greeting(encode(["tinkex-hello", 2, {"new": "things"}]))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        encode([]),
        encode(["hello", 1]),
        encode(["tinkex-hello", 1]),
        encode(["tinkex-hello", 1, bytes(31), None, bytes(8), 1, 1]),
        encode(["tinkex-hello", 1, bytes(32), bytes(9000), bytes(8), 1, 1]),
        encode(["tinkex-hello", 1, bytes(32), None, bytes(8), 0, 1]),
        encode_greeting(HELLO) + b"x",
        encode_frame([Ping(1)]),
    ],
)
def test_anything_else_is_no_greeting(frame):
    with pytest.raises(PeerProtocolError):
        decode_greeting(frame)
