"""Parts are counted without being made, as many as the decoder would make."""

import random

import pytest
from proto_mutations import DAMAGES, valid_request

from tinkex.wire import tinkex_public_pb2 as pb
from tinkex.wire.parts import MAX_PARTS, count_parts


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def parts_of(message):
    """What the decoder made."""
    parts = len(message.data) + len(message.loss_fn_config) + len(message.loss_fn_config_v2)
    for datum in message.data:
        parts += len(datum.model_input) + 2 * len(datum.loss_fn_inputs)
        parts += len(datum.model_input_spans) + len(datum.loss_fn_input_spans)
        parts += sum(len(tensor.shape) for tensor in datum.loss_fn_inputs.values())
    return parts


@pytest.mark.parametrize("seed", range(20))
def test_valid_request_is_counted_as_it_is(seed):
    message = valid_request(random.Random(seed), "run", 1, vocab=100)
    datums, parts = count_parts(message.SerializeToString())
    assert datums == len(message.data)
    assert parts == parts_of(message)


BOMBS = {
    "datums": b"\x1a\x00" * 400_000,
    "chunks": field(3, b"\x0a\x00" * 400_000),
    "inputs": field(3, b"\x12\x00" * 400_000),
    "spans": field(3, b"\x1a\x00" * 400_000),
    "other spans": field(3, b"\x22\x00" * 400_000),
    "dimensions": field(3, field(2, field(2, field(4, b"\x01" * 400_000)))),
    "dimensions one by one": field(3, field(2, field(2, b"\x20\x01" * 400_000))),
    "settings": b"\x2a\x00" * 400_000,
    "newer settings": b"\x3a\x00" * 400_000,
    "behind a group": b"\xa3\x01\xa4\x01" + b"\x1a\x00" * 400_000,
    "behind fixed fields": b"\xa1\x01" + bytes(8) + b"\xa5\x01" + bytes(4) + b"\x1a\x00" * 400_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_above_the_limit(name):
    assert len(BOMBS[name]) < 2 * 2**20
    assert count_parts(BOMBS[name])[1] > MAX_PARTS


def test_large_arrays_are_no_parts():
    message = pb.ForwardBackwardRequest()
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = bytes(10**6)
    datum.loss_fn_inputs["weights"].dense = b"\x1a\x00" * 10**6
    assert count_parts(message.SerializeToString()) == (1, 4)


@pytest.mark.parametrize("seed", range(200))
def test_what_the_decoder_takes_is_never_counted_too_low(seed):
    choices = random.Random(seed)
    body = valid_request(choices, "run", 1, vocab=100).SerializeToString()
    body = choices.choice(DAMAGES)(choices, body)
    _, parts = count_parts(body)
    try:
        made = pb.ForwardBackwardRequest.FromString(body)
    except Exception:  # noqa: BLE001 - whatever the decoder refuses is not made
        return
    assert parts >= parts_of(made)
