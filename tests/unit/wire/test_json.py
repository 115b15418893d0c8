"""The JSON of older SDKs: read whole, refused with the place, written as they read it."""

import json

import numpy as np
import pytest

from tinkex import types
from tinkex.errors import InputError, WireDecodeError
from tinkex.wire.json import (
    decode_forward_backward_json_envelope,
    forward_backward_output_to_json,
    sample_response_to_json,
)

DATUM = {
    "model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
    "loss_fn_inputs": {"weights": {"data": [1.0, None], "dtype": "float32", "shape": [2]}},
}


def body(**changes):
    inner = {"data": [DATUM], "loss_fn": "cross_entropy"} | changes.pop("inner", {})
    fields = {"forward_backward_input": inner, "model_id": "m", "seq_id": 1} | changes
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


def test_null_in_a_tensor_reads_as_nan():
    (datum,) = decode_forward_backward_json_envelope(body()).decode_data()
    assert np.isnan(datum.loss_fn_inputs["weights"].to_numpy()[1])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (body(surprise=1), "surprise"),
        (body(model_id=...), "model_id"),
        (body(seq_id="1"), "seq_id"),
        (body(seq_id=True), "seq_id"),
        (body(forward_input={}), "exactly one"),
        (body(forward_backward_input=...), "exactly one"),
        (body(inner={"data": 5}), "list of datums"),
        (body(inner={"loss_fn": 5}), "loss_fn"),
        (body(inner={"odd": 5}), "odd"),
        (body(inner={"loss_fn_config": {"a": None}}), r"loss_fn_config\['a'\]"),
    ],
)
def test_request_of_another_form_is_refused_with_the_place(raw, words):
    with pytest.raises(WireDecodeError, match=words):
        decode_forward_backward_json_envelope(raw)


@pytest.mark.parametrize(
    "datum",
    [
        5,
        {},
        {"model_input": {"chunks": [{"type": "riddle"}]}},
        DATUM | {"odd": 1},
        DATUM | {"loss_fn_inputs": {"weights": [1.0]}},
        DATUM | {"loss_fn_inputs": {"weights": {"data": ["a"], "dtype": "float32"}}},
        DATUM | {"model_input_spans": [{"type": "nowhere"}]},
    ],
)
def test_bad_datum_is_named_when_the_data_are_read(datum):
    envelope = decode_forward_backward_json_envelope(body(inner={"data": [DATUM, datum]}))
    assert envelope.datum_count == 2
    with pytest.raises(InputError, match="Datum 1"):
        envelope.decode_data()


def test_output_is_written_as_old_sdks_read_it():
    tensor = types.TensorData(np.asarray([-1.5, -2.0], np.float32))
    output = types.ForwardBackwardOutput("ArrayRecord", [{"logprobs": tensor}], {"loss:sum": 3.5})
    assert forward_backward_output_to_json(output) == {
        "loss_fn_output_type": "ArrayRecord",
        "loss_fn_outputs": [{"logprobs": {"data": [-1.5, -2.0], "dtype": "float32"}}],
        "metrics": {"loss:sum": 3.5},
    }


def test_sample_is_written_with_null_for_a_missing_logprob():
    sequence = types.SampledSequence(
        "stop", "s", np.asarray([4], np.int32), np.asarray([-0.5], np.float32)
    )
    response = types.SampleResponse([sequence], np.asarray([np.nan, -1.0], np.float32))
    assert sample_response_to_json(response) == {
        "sequences": [{"stop_reason": "stop", "tokens": [4], "logprobs": [-0.5]}],
        "type": "sample",
        "prompt_logprobs": [None, -1.0],
    }


@pytest.mark.parametrize("kind", ["forward_backward", "forward", None])
def test_type_of_old_requests_is_read(kind):
    assert decode_forward_backward_json_envelope(body(type=kind)).model_id == "m"


@pytest.mark.parametrize("kind", ["", "sample", 3, {}])
def test_other_type_is_refused(kind):
    with pytest.raises(WireDecodeError, match="type"):
        decode_forward_backward_json_envelope(body(type=kind))
    with pytest.raises(WireDecodeError, match="type"):
        decode_forward_backward_json_envelope(body(inner={"type": kind}))
