"""Every recorded message of the official SDK is read, and written again the same (A0.2)."""

import json
import re

import numpy as np
import pytest
from recordings import exchanges, load

from tinkex import types
from tinkex.wire import endpoints, proto
from tinkex.wire import tinkex_public_pb2 as pb
from tinkex.wire.json import decode_forward_backward_json_envelope

PROTOBUF_REQUESTS = [e for e in exchanges() if e.protobuf_request is not None]
PROTOBUF_RESPONSES = [e for e in exchanges() if e.protobuf_response is not None]


def endpoint_of(exchange):
    """The endpoint with a JSON request type that an exchange went to."""
    for endpoint in endpoints.ALL:
        pattern = re.sub(r"\{\w+\}", r"[^/]+", endpoint.path)
        same = re.fullmatch(pattern, exchange.request["path"])
        if same and endpoint.method == exchange.request["method"] and endpoint.request:
            return endpoint
    return None


JSON_REQUESTS = [
    (exchange, endpoint_of(exchange))
    for exchange in exchanges()
    if exchange.request.get("body_kind") == "json" and endpoint_of(exchange)
    # fixtures of older SDKs: their fields differ, and test_json.py reads them
    if "old_sdk" not in exchange.case
]


def test_recordings_cover_what_they_are_meant_to():
    assert len(PROTOBUF_REQUESTS) >= 40
    assert len(PROTOBUF_RESPONSES) >= 60
    assert len(JSON_REQUESTS) >= 150
    covered = {endpoint.name for _, endpoint in JSON_REQUESTS}
    assert {"create_model", "optim_step", "asample", "save_weights", "load_weights"} <= covered
    assert {"save_weights_for_sampler", "create_sampling_session", "retrieve_future"} <= covered
    assert {"create_session", "get_info", "client_config"} <= covered


@pytest.mark.parametrize("exchange", PROTOBUF_REQUESTS, ids=lambda e: e.name)
def test_protobuf_request_is_written_again_the_same(exchange):
    raw = exchange.protobuf_request
    again = proto.encode_forward_backward_request(proto.decode_forward_backward_request(raw))
    assert pb.ForwardBackwardRequest.FromString(again) == pb.ForwardBackwardRequest.FromString(raw)


@pytest.mark.parametrize("exchange", PROTOBUF_RESPONSES, ids=lambda e: e.name)
def test_protobuf_response_is_written_again_with_equal_values(exchange):
    raw = exchange.protobuf_response
    if "SampleResponse" in exchange.response["body_kind"]:
        once = proto.decode_sample_response(raw)
        assert proto.decode_sample_response(proto.encode_sample_response(once)) == once
    else:
        once = proto.decode_forward_backward_output(raw)
        again = proto.encode_forward_backward_output(once)
        assert proto.decode_forward_backward_output(again) == once


@pytest.mark.parametrize(("exchange", "endpoint"), JSON_REQUESTS, ids=lambda v: v.name)
def test_json_request_is_written_again_the_same(exchange, endpoint):
    body = exchange.request["body"]
    message = endpoint.request.model_validate_json(json.dumps(body))
    assert json.loads(message.model_dump_json()) == body


RESULTS = [
    case
    for case in sorted({e.case for e in PROTOBUF_RESPONSES})
    if isinstance(load(case).get("sdk_result"), dict)
    and {"ForwardBackwardOutput", "SampleResponse"} & set(load(case)["sdk_result"])
    # several chunks or two passes: the client folds them, see tests/unit/client
    and sum(e.case == case for e in PROTOBUF_RESPONSES) == 1
]


def test_results_to_compare_are_many():
    assert len(RESULTS) >= 25


@pytest.mark.parametrize("case", RESULTS)
def test_recorded_response_reads_as_the_official_sdk_read_it(case):
    exchange = next(e for e in PROTOBUF_RESPONSES if e.case == case)
    result = load(case)["sdk_result"]
    if "SampleResponse" in result:
        assert_sample(proto.decode_sample_response(exchange.protobuf_response), result)
    else:
        output = proto.decode_forward_backward_output(exchange.protobuf_response)
        assert_output(output, result["ForwardBackwardOutput"])


def assert_output(output, expected):
    assert output.loss_fn_output_type == expected["loss_fn_output_type"]
    assert output.metrics == expected["metrics"]
    assert len(output.loss_fn_outputs) == len(expected["loss_fn_outputs"])
    for row, fields in zip(output.loss_fn_outputs, expected["loss_fn_outputs"], strict=True):
        assert {name: tensor.data for name, tensor in row.items()} == {
            name: field["TensorData"]["data"] for name, field in fields.items()
        }
        assert {name: list(tensor.dimensions) for name, tensor in row.items()} == {
            name: field["TensorData"]["shape"] for name, field in fields.items()
        }


def assert_sample(response, result):
    expected = result["SampleResponse"]
    assert [s.tokens for s in response.sequences] == [s["tokens"] for s in expected["sequences"]]
    assert [s.stop_reason for s in response.sequences] == [
        s["stop_reason"] for s in expected["sequences"]
    ]
    assert [s.logprobs for s in response.sequences] == [
        s["logprobs"] for s in expected["sequences"]
    ]
    assert response.prompt_logprobs == expected["prompt_logprobs"]
    assert response.prompt_cache_hit_tokens == expected["prompt_cache_hit_tokens"]


@pytest.mark.parametrize("name", ["forward", "forward_backward"])
def test_old_json_request_reads_as_the_protobuf_one_would(name):
    body = load(f"old_sdk_0.22.0/{name}")["exchanges"][0]["request"]["body"]
    envelope = decode_forward_backward_json_envelope(json.dumps(body).encode())
    assert envelope.forward_only == (name == "forward")
    assert envelope.model_id == body["model_id"]
    assert envelope.seq_id == body["seq_id"]
    assert envelope.loss_fn == "cross_entropy"
    (datum,) = envelope.decode_data()
    assert datum.model_input.to_ints() == [1, 2, 3]
    assert np.array_equal(datum.loss_fn_inputs["target_tokens"].to_numpy(), [2, 3, 4])


def test_request_with_an_unknown_field_is_refused_by_name():
    from pydantic import ValidationError

    for endpoint in endpoints.ALL:
        if endpoint.request is None:
            continue
        with pytest.raises(ValidationError) as caught:
            endpoint.request.model_validate({"surprise": 1})
        assert ("surprise",) in {fault["loc"] for fault in caught.value.errors()}


def test_response_with_an_unknown_field_is_read():
    future = types.UntypedAPIFuture.model_validate({"request_id": "r", "later": True})
    assert future.request_id == "r"
