"""Datum, the JSON messages, and the addresses of checkpoints."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tinkex import types
from tinkex.errors import InputError, TinkerPathError
from tinkex.types.tinker_path import check_part, format_tinker_path


def test_plain_lists_take_the_dtype_of_their_key():
    datum = types.Datum(
        types.ModelInput.from_ints([1]),
        {"target_tokens": [2], "weights": [1], "advantages": [3], "logprobs": [-1]},
    )
    assert {key: tensor.dtype for key, tensor in datum.loss_fn_inputs.items()} == {
        "target_tokens": "int64",
        "weights": "float32",
        "advantages": "float32",
        "logprobs": "float32",
    }


def test_plain_list_under_an_unknown_key_is_refused_by_name():
    with pytest.raises(InputError, match="riddle"):
        types.Datum(types.ModelInput.from_ints([1]), {"riddle": [1]})


def test_array_under_an_unknown_key_brings_its_own_dtype():
    datum = types.Datum(types.ModelInput.from_ints([1]), {"mine": np.asarray([1, 2], np.int16)})
    assert datum.loss_fn_inputs["mine"].dtype == "int64"


def test_torch_matrix_of_targets_travels_sparse_when_smaller():
    torch = pytest.importorskip("torch")
    weights = torch.zeros(4, 10)
    datum = types.Datum(
        types.ModelInput.from_ints([1]), {"weights": weights, "logprobs": weights.clone()}
    )
    assert datum.loss_fn_inputs["weights"].is_sparse
    assert not datum.loss_fn_inputs["logprobs"].is_sparse


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("weights", [[1.0], [1.0, 2.0]]),
        ("weights", ["a"]),
        ("target_tokens", [2**70]),
        ("target_tokens", [float("nan")]),
    ],
)
def test_list_that_is_no_array_of_numbers_is_refused(key, values):
    with pytest.raises(InputError, match=key):
        types.Datum(types.ModelInput.from_ints([1]), {key: values})


def test_list_of_arrays_is_an_array_of_their_numbers():
    """As the official package takes one."""
    given = {"target_tokens": [np.array([1, 2])], "weights": [np.array(0.5), np.array(1.0)]}
    inputs = types.Datum(types.ModelInput.from_ints([1, 2]), given).loss_fn_inputs
    assert (inputs["target_tokens"].shape, inputs["target_tokens"].data) == ([1, 2], [1, 2])
    assert inputs["weights"].data == [0.5, 1.0]


def test_provenance_gives_a_new_datum():
    span = types.SampledProvenanceSpan(sequence_id="s", length=1)
    datum = types.Datum(types.ModelInput.from_ints([1]))
    marked = datum.with_provenance([span], [span])
    assert datum.model_input_spans is None
    assert marked.loss_fn_input_spans == [span]


def test_provenance_that_does_not_tile_its_field_is_refused():
    datum = types.Datum(types.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})
    prompt = types.PromptProvenanceSpan(sequence_id="s", length=1)
    sampled = types.SampledProvenanceSpan(sequence_id="s", length=2)
    empty = types.SampledProvenanceSpan(sequence_id="s", length=0)
    assert datum.with_provenance([prompt, sampled, empty], [prompt, sampled])
    with pytest.raises(InputError, match="model_input cover 2 positions of 3"):
        datum.with_provenance([sampled], [prompt, sampled])
    with pytest.raises(InputError, match="loss_fn_inputs cover 4 positions of 3"):
        datum.with_provenance([prompt, sampled], [sampled, sampled])
    with pytest.raises(InputError, match="not tuple"):
        types.Datum(datum.model_input, {}, model_input_spans=[("prompt", 3)])


@pytest.mark.parametrize(
    "fields", [{"length": -1}, {"length": 1, "offset": -1}, {"length": 1, "sequence_id": ""}]
)
@pytest.mark.parametrize("kind", [types.PromptProvenanceSpan, types.SampledProvenanceSpan])
def test_span_that_cannot_be_is_refused(kind, fields):
    with pytest.raises(InputError, match="provenance span"):
        kind(**{"sequence_id": "s", **fields})


@pytest.mark.parametrize("word", ["user", "USER", "User"])
def test_category_is_read_in_any_letter_case(word):
    """A1.1"""
    failed = types.RequestFailedResponse.model_validate({"error": "x", "category": word})
    assert failed.category is types.RequestErrorCategory.User


@pytest.mark.parametrize("word", ["", "cosmic", "client"])
def test_unknown_category_becomes_unknown(word):
    """A1.1"""
    failed = types.RequestFailedResponse.model_validate({"error": "x", "category": word})
    assert failed.category is types.RequestErrorCategory.Unknown
    assert types.QueueState.parse(word) is types.QueueState.UNKNOWN


@pytest.mark.parametrize("rank", ["8", 8.5, True, None, 2**63])
def test_what_is_no_whole_number_is_not_read_as_one(rank):
    with pytest.raises(ValidationError):
        types.LoraConfig(rank=rank)


@pytest.mark.parametrize("rank", [8, np.int64(8), np.uint8(8), 8.0])
def test_whole_numbers_of_every_kind_are_taken(rank):
    config = types.LoraConfig(rank=rank, train_mlp=np.bool_(False))
    assert (config.rank, type(config.rank), config.train_mlp) == (8, int, False)


@pytest.mark.parametrize(
    ("given", "stop"),
    [
        ("end", "end"),
        (("a", "b"), ["a", "b"]),
        ([np.int64(3)], [3]),
        (np.asarray([3, 4]), [3, 4]),
        ([], []),
    ],
)
def test_stop_is_taken_in_every_form(given, stop):
    params = types.SamplingParams(stop=given, seed=np.int64(5), temperature=np.float32(0.5))
    assert params.stop == stop
    assert json.loads(params.model_dump_json())["stop"] == stop
    assert (params.seed, params.temperature) == (5, 0.5)


def test_stop_of_numbers_and_words_is_refused():
    with pytest.raises(ValidationError):
        types.SamplingParams(stop=["a", 1])


def test_messages_are_immutable():
    with pytest.raises(ValidationError, match="frozen"):
        types.AdamParams().learning_rate = 1.0


def test_optimiser_parameters_are_read_under_either_name():
    adam = types.OptimStepRequest(model_id="m", adam_params=types.AdamParams(learning_rate=1.0))
    dimuon = types.OptimStepRequest(
        model_id="m", optimizer_params=types.DimuonParams(learning_rate=2.0)
    )
    assert adam.optim_params.learning_rate == 1.0
    assert dimuon.optim_params.learning_rate == 2.0


def test_optimiser_parameters_go_under_the_name_of_their_type():
    adam = types.AdamParams(learning_rate=1.0)
    dimuon = types.DimuonParams(learning_rate=2.0)
    assert types.OptimStepRequest(model_id="m", optim_params=adam).adam_params == adam
    assert types.OptimStepRequest(model_id="m", optim_params=dimuon).optimizer_params == dimuon
    assert types.OptimStepRequest(model_id="m", optim_params=None).optim_params == (
        types.AdamParams()
    )


@pytest.mark.parametrize("other", ["optim_params", "optimizer_params"])
def test_two_sets_of_optimiser_parameters_are_refused(other):
    second = types.AdamParams() if other == "optim_params" else types.DimuonParams(learning_rate=1)
    with pytest.raises(ValidationError, match="give one"):
        types.OptimStepRequest(model_id="m", adam_params=types.AdamParams(), **{other: second})


def test_missing_logprobs_of_a_prompt_read_as_none():
    response = types.SampleResponse([], np.asarray([np.nan, -1.0], np.float32))
    assert response.prompt_logprobs == [None, -1.0]
    assert types.SampleResponse([]).prompt_logprobs is None


def test_empty_cells_of_topk_are_left_out():
    topk = types.TopkLogprobs(
        np.asarray([[0, 0], [5, 0]], np.int32),
        np.asarray([[-99999.0, -99999.0], [-0.5, -99999.0]], np.float32),
    )
    assert topk.to_list() == [None, [(5, -0.5)]]


def test_path_is_taken_apart_and_put_together():
    path = format_tinker_path("sess-1:train:0", "sampler_weights", "step-10")
    parsed = types.ParsedCheckpointTinkerPath.from_tinker_path(path)
    assert path == "tinker://sess-1:train:0/sampler_weights/step-10"
    assert parsed.training_run_id == "sess-1:train:0"
    assert parsed.checkpoint_type == "sampler"
    assert parsed.checkpoint_id == "sampler_weights/step-10"
    assert parsed.name == "step-10"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "tinker://",
        "tinker://run/weights",
        "tinker://run/weights/a/b",
        "tinker://run/riddle/a",
        "tinker://run/weights/..",
        "tinker://../weights/a",
        "tinker://run/weights/.hidden",
        "tinker://run/weights/a b",
        "tinker://run/weights/a\n",
        "tinker://run/weights/" + "a" * 201,
        "http://run/weights/a",
    ],
)
def test_path_of_another_form_is_refused(path):
    with pytest.raises(TinkerPathError, match=r"tinker://|cannot be used"):
        types.ParsedCheckpointTinkerPath.from_tinker_path(path)


@given(st.text(max_size=30))
def test_part_that_is_accepted_is_a_plain_file_name(text):
    try:
        check_part(text, "name")
    except TinkerPathError:
        return
    assert text
    assert "/" not in text
    assert "\\" not in text
    assert "\0" not in text
    assert not text.startswith(".")
    assert text.isprintable()


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (types.CustomLossInput, {"name": "x", "rank": False}),
        (types.CustomLossGraph, {"format": True, "nodes": []}),
        (types.DimuonOptimizerConfig, {"version": True}),
    ],
)
def test_boolean_is_no_literal_number(message, fields):
    with pytest.raises(ValidationError, match="boolean"):
        message.model_validate(fields)


def test_cursor_that_was_kept_as_json_is_read_again():
    text = {"last_created_at": "2026-01-02T03:04:05.000006Z", "last_session_id": "s"}
    cursor = types.SessionSearchCursor(**text)
    assert cursor.model_dump(mode="json") == text
    assert types.SessionSearchRequest(cursor=text).cursor == cursor


@pytest.mark.parametrize("moment", [3, 1767323045.5, True, "yesterday", "2026-01-02T03:04:05"])
def test_cursor_takes_no_date_that_is_none(moment):
    with pytest.raises(ValidationError, match="last_created_at"):
        types.SessionSearchCursor(last_created_at=moment, last_session_id="s")
