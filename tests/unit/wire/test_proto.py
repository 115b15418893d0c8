"""The protobuf codec against hostile bytes and against the official package's own messages."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkex import types
from tinkex.errors import InputError, TinkerError, WireDecodeError
from tinkex.wire import proto
from tinkex.wire import tinkex_public_pb2 as pb

SPANS = [
    types.PromptProvenanceSpan(sequence_id="s", length=2),
    types.SampledProvenanceSpan(sequence_id="s", offset=2, length=1),
]


def request(**changes):
    datum = types.Datum(
        types.ModelInput(
            [
                types.EncodedTextChunk([1, 2, 3]),
                types.ImageChunk(b"\x89PNG", "png", 7),
                types.DmelChunk(b"\x01\x02"),
            ]
        ),
        {
            "target_tokens": np.arange(3),
            "weights": np.asarray([0.5, -1.0, np.nan], np.float32),
            "soft": types.TensorData([5, 6], "int64", [3, 4], [0, 1, 1, 2], [3, 0]),
        },
        SPANS,
        SPANS,
    )
    fields = {"loss_fn": "ppo", "loss_fn_config": {"beta": 0.5, "mode": "x"}, "data": [datum]}
    fields |= changes
    inner = types.ForwardBackwardInput(fields["data"], fields["loss_fn"], fields["loss_fn_config"])
    return types.ForwardBackwardRequest(inner, "s:train:0", 3, forward_only=True)


def test_request_round_trip_keeps_every_field():
    original = request()
    assert (
        proto.decode_forward_backward_request(proto.encode_forward_backward_request(original))
        == original
    )


def test_number_settings_stand_in_both_maps_and_text_in_the_second():
    message = pb.ForwardBackwardRequest.FromString(proto.encode_forward_backward_request(request()))
    assert dict(message.loss_fn_config) == {"beta": 0.5}
    assert message.loss_fn_config_v2["mode"].text == "x"
    assert message.loss_fn_config_v2["beta"].number == 0.5


def test_image_by_location_cannot_be_trained_on():
    data = [types.Datum(types.ModelInput([types.ImageAssetPointerChunk("loc", "png")]))]
    with pytest.raises(InputError, match="ImageChunk"):
        proto.encode_forward_backward_request(request(data=data))


def test_spans_for_one_side_only_are_refused():
    data = [types.Datum(types.ModelInput.from_ints([1]), {}, SPANS, None)]
    with pytest.raises(InputError, match="provenance"):
        proto.encode_forward_backward_request(request(data=data))


def test_envelope_is_read_when_a_datum_is_broken():
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=9, loss_fn="cross_entropy")
    message.data.add().model_input.add().encoded_text.tokens = b"\x01\x00\x00\x00"
    message.data.add().loss_fn_inputs["weights"].dense = b"\x01\x02\x03"
    envelope = proto.decode_forward_backward_envelope(message.SerializeToString())
    assert (envelope.model_id, envelope.seq_id, envelope.datum_count) == ("m", 9, 2)
    with pytest.raises(InputError, match=r"Datum 1, loss_fn_inputs\['weights'\]"):
        envelope.decode_data()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dense": b"\0" * 7, "dtype": pb.DTYPE_FLOAT32}, "whole number"),
        ({"dense": b"\0" * 8, "dtype": pb.DTYPE_FLOAT32, "shape": [3]}, "shape"),
        ({"dense": b"\0" * 8, "dtype": pb.DTYPE_FLOAT32, "shape": [-2]}, "negative"),
        ({"dense": b"\0" * 8}, "dtype code 0"),
        ({"dense": b"\0" * 8, "dtype": 77}, "dtype code 77"),
    ],
)
def test_tensor_that_does_not_fit_is_refused(fields, words):
    message = pb.ForwardBackwardRequest(model_id="m")
    message.data.add().loss_fn_inputs["x"].MergeFrom(pb.Tensor(**fields))
    with pytest.raises(InputError, match=words):
        proto.decode_forward_backward_request(message.SerializeToString())


def test_bfloat16_and_int32_results_are_widened_exactly():
    message = pb.ForwardBackwardOutput(loss_fn_output_type="pkg:ArrayRecord")
    record = message.loss_fn_outputs.add(num_datums=2)
    halves = (np.asarray([1.5, -2.0, 3.0], np.float32).view("<u4") >> 16).astype("<u2")
    record.fields["h"].data = halves.tobytes()
    record.fields["h"].offsets = np.asarray([0, 2, 6], "<i8").tobytes()
    record.fields["h"].dtype = pb.DTYPE_BFLOAT16
    record.fields["i"].data = np.asarray([7, 8], "<i4").tobytes()
    record.fields["i"].offsets = np.asarray([0, 4, 8], "<i8").tobytes()
    record.fields["i"].dtype = pb.DTYPE_INT32
    output = proto.decode_forward_backward_output(message.SerializeToString())
    assert output.loss_fn_output_type == "ArrayRecord"
    assert [row["h"].data for row in output.loss_fn_outputs] == [[1.5], [-2.0, 3.0]]
    assert [row["i"].data for row in output.loss_fn_outputs] == [[7], [8]]


def test_offsets_that_do_not_cut_the_data_are_refused():
    message = pb.ForwardBackwardOutput()
    record = message.loss_fn_outputs.add(num_datums=1)
    record.fields["x"].data = b"\0" * 8
    record.fields["x"].offsets = np.asarray([0, 4], "<i8").tobytes()
    record.fields["x"].dtype = pb.DTYPE_FLOAT32
    with pytest.raises(WireDecodeError, match="offsets"):
        proto.decode_forward_backward_output(message.SerializeToString())


def test_outputs_of_different_shapes_round_trip():
    rows = [
        {"logprobs": types.TensorData(np.zeros((2, 3), np.float32))},
        {"logprobs": types.TensorData(np.ones((1, 3), np.float32))},
        {"logprobs": types.TensorData(np.ones(4, np.float32)), "x": types.TensorData([1, 2])},
        {},
    ]
    output = types.ForwardBackwardOutput("ArrayRecord", rows, {"loss:sum": 1.0})
    again = proto.decode_forward_backward_output(proto.encode_forward_backward_output(output))
    assert again == output


def test_results_may_be_written_into():
    """As the official package's: programs subtract a baseline in place."""
    rows = [{"logprobs": types.TensorData(np.full(2, -0.5, np.float32))} for _ in range(2)]
    raw = proto.encode_forward_backward_output(types.ForwardBackwardOutput("ArrayRecord", rows, {}))
    first, second = (
        row["logprobs"] for row in proto.decode_forward_backward_output(raw).loss_fn_outputs
    )
    values = first.to_numpy()
    values -= 1.0
    assert second.data == [-0.5, -0.5]

    topk = types.TopkLogprobs(np.ones((1, 2), np.int32), np.ones((1, 2), np.float32))
    sequence = types.SampledSequence("stop", "", np.ones(1, np.int32), np.ones(1, np.float32), topk)
    tensor = types.TensorData(np.ones((1, 1), np.float32))
    whole = types.SampleResponse(
        [sequence], np.ones(2, np.float32), topk, tensor, 0, types.PromptAltTokens(tensor, tensor)
    )
    found = proto.decode_sample_response(proto.encode_sample_response(whole))
    [sequence] = found.sequences
    assert found.target_prompt_logprobs is not None
    assert found.prompt_alt_tokens is not None
    for array in (
        sequence.tokens_np,
        sequence.logprobs_np,
        sequence.topk_logprobs_np.logprobs,
        sequence.topk_logprobs_np.token_ids,
        found.prompt_logprobs_np,
        found.topk_prompt_logprobs_np.logprobs,
        found.target_prompt_logprobs.to_numpy(),
        found.prompt_alt_tokens.tokens.to_numpy(),
        found.prompt_alt_tokens.logprobs.to_numpy(),
    ):
        np.add(array, 1, out=array)
        assert (array == 2).all()


def test_stop_reason_of_a_later_version_reads_as_length():
    """A1.1"""
    message = pb.SampleResponse()
    message.sequences.add(tokens=b"\1\0\0\0").stop_reason = 9
    assert proto.decode_sample_response(message.SerializeToString()).sequences[0].stop_reason == (
        "length"
    )


def test_sequences_and_their_names_must_be_as_many():
    body = pb.SampleResponse(sequences=[pb.SampledSequence()]).SerializeToString()
    with pytest.raises(WireDecodeError, match="1 sequences came back for 2"):
        proto.decode_sample_response(body, ["a", "b"])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused_with_a_typed_error(body):
    for decode in (
        proto.decode_forward_backward_request,
        proto.decode_forward_backward_output,
        proto.decode_sample_response,
    ):
        with contextlib.suppress(TinkerError):
            decode(body)


FLOATS = st.floats(width=32, allow_nan=False)


@pytest.mark.interop
@given(st.lists(st.lists(FLOATS, min_size=1, max_size=5), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_official_message_reads_our_request_equally(rows):
    official = pytest.importorskip("tinker.proto.tinker_public_pb2")
    data = [
        types.Datum(
            types.ModelInput.from_ints(list(range(len(row)))),
            {"weights": np.asarray(row, np.float32)},
        )
        for row in rows
    ]
    raw = proto.encode_forward_backward_request(request(data=data))
    theirs = official.ForwardBackwardRequest.FromString(raw)
    assert theirs.loss_fn == "ppo"
    assert theirs.forward_only
    for datum, row in zip(theirs.data, rows, strict=True):
        assert np.frombuffer(datum.loss_fn_inputs["weights"].dense, "<f4").tolist() == row
    again = official.ForwardBackwardRequest.SerializeToString(theirs)
    assert proto.decode_forward_backward_request(again) == proto.decode_forward_backward_request(
        raw
    )


@pytest.mark.interop
@pytest.mark.parametrize(
    "order",
    [
        "import tinker.proto.tinker_public_pb2; import tinkex.wire.tinkex_public_pb2",
        "import tinkex.wire.tinkex_public_pb2; import tinker.proto.tinker_public_pb2",
    ],
)
def test_official_package_and_ours_live_in_one_process(order):
    pytest.importorskip("tinker")
    subprocess.run([sys.executable, "-W", "ignore", "-c", order], check=True)
