"""Reading batches: the same content has the same digest, and a cut-off body still has an owner."""

import contextlib
import json
import random

import numpy as np
import pytest
from server_support import batch_json

from tinkex.errors import APIStatusError, InputError
from tinkex.server.http.decoding import read_call, read_oversize_call
from tinkex.types import (
    Datum,
    ForwardBackwardInput,
    ForwardBackwardRequest,
    ModelInput,
    SampledProvenanceSpan,
)
from tinkex.wire import tinkex_public_pb2 as pb
from tinkex.wire.proto import encode_forward_backward_request

PROTOBUF = "application/x-protobuf"
JSON = "application/json"


def request(tokens=(5, 6, 7), *, seq_id=3, loss_fn="cross_entropy", config=None, **inputs):
    inputs = {"target_tokens": list(tokens), "weights": [1.0] * len(tokens), **inputs}
    datum = Datum(ModelInput.from_ints(list(tokens)), inputs)
    inner = ForwardBackwardInput([datum], loss_fn, config)
    return encode_forward_backward_request(ForwardBackwardRequest(inner, "run", seq_id))


async def digest(body, content_type=PROTOBUF):
    return (await read_call(body, content_type=content_type, max_datums=100)).digest


async def test_protobuf_is_read():
    call = await read_call(
        request(config={"beta": 0.5}), content_type=f"{PROTOBUF}; v=1", max_datums=100
    )
    assert (call.model_id, call.seq_id, call.loss_fn) == ("run", 3, "cross_entropy")
    assert call.loss_fn_config == {"beta": 0.5}
    assert call.data[0].model_input.to_ints() == [5, 6, 7]
    assert call.problem is None
    assert call.request_bytes == 3 * (4 + 8 + 4)
    assert call.result_bytes == 3 * 8


async def test_json_is_read():
    body = json.dumps(batch_json("run", 3, tokens=[5, 6, 7])).encode()
    call = await read_call(body, content_type=JSON, max_datums=100)
    assert (call.model_id, call.seq_id, call.forward_only) == ("run", 3, False)
    assert call.data[0].loss_fn_inputs["target_tokens"].data == [6, 7]


async def test_endpoint_decides_over_the_message():
    call = await read_call(request(), content_type=PROTOBUF, max_datums=100, forward_only=True)
    assert call.forward_only


async def test_large_body_is_read_alike():
    tokens = np.arange(50_000) % 1000
    call = await read_call(request(tokens), content_type=PROTOBUF, max_datums=100)
    assert call.data[0].model_input.length == 50_000


async def test_same_content_has_the_same_digest_in_whatever_order_it_was_written():
    message = pb.ForwardBackwardRequest.FromString(request())
    other = pb.ForwardBackwardRequest(model_id="run", seq_id=3, loss_fn="cross_entropy")
    datum = other.data.add()
    datum.model_input.extend(message.data[0].model_input)
    for key in sorted(message.data[0].loss_fn_inputs, reverse=True):
        datum.loss_fn_inputs[key].CopyFrom(message.data[0].loss_fn_inputs[key])
    assert await digest(other.SerializeToString()) == await digest(request())


@pytest.mark.parametrize(
    "other",
    [
        request([5, 6, 8]),
        request(loss_fn="importance_sampling"),
        request(config={"beta": 1.0}),
        request(weights=[1.0, 1.0, 0.5]),
        request(advantages=[1.0, 1.0, 1.0]),
    ],
)
async def test_other_content_has_another_digest(other):
    assert await digest(other) != await digest(request())


async def test_other_provenance_has_another_digest():
    def named(name):
        spans = [SampledProvenanceSpan(sequence_id=name, length=1)]
        datum = Datum(ModelInput.from_ints([5]), {"target_tokens": [6]}, spans, spans)
        inner = ForwardBackwardInput([datum], "stable_reinforce", None)
        return encode_forward_backward_request(ForwardBackwardRequest(inner, "run", 1))

    assert await digest(named("a")) == await digest(named("a"))
    assert await digest(named("a")) != await digest(named("b"))


async def test_bad_datum_is_kept_for_the_future():
    message = pb.ForwardBackwardRequest.FromString(request())
    message.data.add().model_input.add().encoded_text.tokens = b"12345"
    call = await read_call(message.SerializeToString(), content_type=PROTOBUF, max_datums=100)
    assert (call.model_id, call.seq_id) == ("run", 3)
    assert isinstance(call.problem, InputError)
    assert "Datum 1" in str(call.problem)


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON, ""])
async def test_bytes_that_are_no_message_are_refused(content_type):
    with pytest.raises(APIStatusError) as caught:
        await read_call(b"\xff\xff\xff\xff", content_type=content_type, max_datums=100)
    assert caught.value.status_code == 400


async def test_cut_off_body_still_names_its_run_and_place():
    body = request(range(1000), seq_id=70_000)
    call = read_oversize_call(body[:500], content_type=PROTOBUF, limit=500)
    assert (call.model_id, call.seq_id) == ("run", 70_000)
    assert "500 bytes" in str(call.problem)


@pytest.mark.parametrize(
    "body", [b"", b"\x0a", b"\x0a\xff", b"\x0a\x03ru", b"\x0a\x03run", b"\x1a"]
)
async def test_body_cut_off_too_early_is_refused(body):
    with pytest.raises(APIStatusError) as caught:
        read_oversize_call(body, content_type=PROTOBUF, limit=500)
    assert caught.value.status_code == 413


async def test_no_beginning_whatever_breaks_the_reader():
    order = random.Random(1)
    for _ in range(2000):
        body = order.randbytes(order.randrange(40))
        with contextlib.suppress(APIStatusError):
            call = read_oversize_call(body, content_type=PROTOBUF, limit=500)
            assert call.problem is not None


async def test_too_many_datums_fail_through_the_future():
    message = pb.ForwardBackwardRequest.FromString(request())
    for _ in range(100):
        message.data.add().CopyFrom(message.data[0])
    body = message.SerializeToString()
    call = await read_call(body, content_type=PROTOBUF, max_datums=100)
    assert (call.model_id, call.seq_id) == ("run", 3)
    assert "100 datums" in str(call.problem)
    assert (await read_call(body, content_type=PROTOBUF, max_datums=101)).problem is None
    batch = batch_json("run", 3)
    batch["forward_backward_input"]["data"] *= 101
    call = await read_call(json.dumps(batch).encode(), content_type=JSON, max_datums=100)
    assert "101 datums" in str(call.problem)


async def test_bomb_of_small_parts_is_not_decoded():
    body = request() + b"\x1a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000
    call = await read_call(body, content_type=PROTOBUF, max_datums=100)
    assert (call.model_id, call.seq_id, call.data) == ("run", 3, ())
    assert "parts" in str(call.problem)
    with pytest.raises(APIStatusError) as caught:
        await read_call(b"[" * 1_000_000, content_type=JSON, max_datums=100)
    assert caught.value.status_code == 413


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda m: m, "The request: a ForwardBackwardRequest has no field of number 1000"),
        (lambda m: m.data[0], r"data\[0\]: a Datum has no field of number 1000"),
        (lambda m: m.data[0].model_input[0], r"data\[0\], model_input\[0\]: a Chunk has no field"),
        (
            lambda m: m.data[0].loss_fn_inputs["weights"],
            r"data\[0\], loss_fn_inputs\['weights'\]: a Tensor has no field of number 1000",
        ),
    ],
)
async def test_unknown_field_is_refused_by_number(place, words):
    message = pb.ForwardBackwardRequest.FromString(request())
    place(message).MergeFromString(b"\xc2\x3e\x03abc")
    call = await read_call(message.SerializeToString(), content_type=PROTOBUF, max_datums=100)
    assert call.seq_id == 3
    with pytest.raises(InputError, match=words):
        raise call.problem


async def test_known_fields_in_an_unusual_form_are_read():
    """Default values written out, and a message in two parts: legal, though no encoder does it."""
    body = request() + b"\x30\x00"
    assert (await read_call(body, content_type=PROTOBUF, max_datums=100)).problem is None


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (0.5, 0.6, "differ"),
        (0.5, "0.5", "differ"),
        (None, None, "no value"),
        (0.5, 0.5, None),
        (float("nan"), float("nan"), None),
        (None, "text", None),
    ],
)
async def test_setting_given_twice_or_not_at_all_is_refused(one, other, words):
    message = pb.ForwardBackwardRequest.FromString(request())
    if one is not None:
        message.loss_fn_config["beta"] = one
    setting = message.loss_fn_config_v2["beta"]
    if isinstance(other, str):
        setting.text = other
    elif other is not None:
        setting.number = other
    call = await read_call(message.SerializeToString(), content_type=PROTOBUF, max_datums=100)
    if words is None:
        assert call.problem is None
    else:
        assert "beta" in str(call.problem)
        assert words in str(call.problem)


async def test_seq_id_beyond_64_bits_is_refused_and_a_negative_one_is_read():
    body = json.dumps(batch_json("run", 2**63)).encode()
    with pytest.raises(APIStatusError, match="64 bits") as refused:
        await read_call(body, content_type=JSON, max_datums=100)
    assert refused.value.status_code == 400
    message = pb.ForwardBackwardRequest(model_id="run", seq_id=-2).SerializeToString()
    call = read_oversize_call(message, content_type=PROTOBUF, limit=5)
    assert (call.model_id, call.seq_id) == ("run", -2)
