"""Reading batches: the same content has the same digest, and a cut-off body still has an owner."""

import contextlib
import json
import random

import numpy as np
import pytest
from server_support import batch_json

from tinkex.errors import APIStatusError, InputError
from tinkex.server.decoding import read_call, read_oversize_call
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
    return (await read_call(body, content_type=content_type)).digest


async def test_protobuf_is_read():
    call = await read_call(request(config={"beta": 0.5}), content_type=f"{PROTOBUF}; v=1")
    assert (call.model_id, call.seq_id, call.loss_fn) == ("run", 3, "cross_entropy")
    assert call.loss_fn_config == {"beta": 0.5}
    assert call.data[0].model_input.to_ints() == [5, 6, 7]
    assert call.problem is None
    assert call.request_bytes == 3 * (4 + 8 + 4)
    assert call.result_bytes == 3 * 8


async def test_json_is_read():
    body = json.dumps(batch_json("run", 3, tokens=[5, 6, 7])).encode()
    call = await read_call(body, content_type=JSON)
    assert (call.model_id, call.seq_id, call.forward_only) == ("run", 3, False)
    assert call.data[0].loss_fn_inputs["target_tokens"].data == [6, 7]


async def test_endpoint_decides_over_the_message():
    call = await read_call(request(), content_type=PROTOBUF, forward_only=True)
    assert call.forward_only


async def test_large_body_is_read_alike():
    tokens = np.arange(50_000) % 1000
    call = await read_call(request(tokens), content_type=PROTOBUF)
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
    call = await read_call(message.SerializeToString(), content_type=PROTOBUF)
    assert (call.model_id, call.seq_id) == ("run", 3)
    assert isinstance(call.problem, InputError)
    assert "Datum 1" in str(call.problem)


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON, ""])
async def test_bytes_that_are_no_message_are_refused(content_type):
    with pytest.raises(APIStatusError) as caught:
        await read_call(b"\xff\xff\xff\xff", content_type=content_type)
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
