"""ModelInput and its chunks."""

import copy
import json
import pickle

import numpy as np
import pytest
from pydantic import ValidationError, create_model

from tinkex.errors import InputError
from tinkex.types import (
    DmelChunk,
    EncodedTextChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    ModelInput,
    ModelInputChunk,
    SampleRequest,
    SamplingParams,
)


@pytest.mark.parametrize("tokens", [[1, 2, 3], (1, 2, 3), np.asarray([1, 2, 3]), range(1, 4)])
def test_tokens_of_any_sequence_come_back_as_ints(tokens):
    given = ModelInput.from_ints(tokens)
    assert given.to_ints() == [1, 2, 3]
    assert given.length == 3
    assert given.chunks[0].tokens_np.dtype == np.int32


@pytest.mark.parametrize("tokens", [[1.0, 2.0], [1, 2.0], (1.0, 2), np.array([1.0, 2.0])])
def test_whole_numbers_kept_as_floats_are_tokens(tokens):
    """As a table with gaps gives them."""
    assert ModelInput.from_ints(tokens).to_ints() == [1, 2]


@pytest.mark.parametrize(
    "tokens",
    [
        *(["a"], [1.5], [[1], [2]], [[]], [2**31], [2**63], [2**80], [True], [None], 5, "text"),
        *([np.array(0.5)], [np.array([1, 2])]),
    ],
)
def test_tokens_that_are_no_flat_list_of_ids_are_refused(tokens):
    with pytest.raises(InputError, match=r"integers|32 bits"):
        ModelInput.from_ints(tokens)


def test_appending_gives_a_new_input():
    first = ModelInput.empty()
    second = first.append_int(5).append_int(6)
    third = second.append(ImageChunk(b"x", "png", 4)).append_int(7)
    assert first.length == 0
    assert second.to_ints() == [5, 6]
    assert len(second.chunks) == 1
    assert third.length == 7
    assert [chunk.type for chunk in third.chunks] == ["encoded_text", "image", "encoded_text"]


def test_input_with_an_image_has_no_token_ids():
    with pytest.raises(InputError, match="image"):
        ModelInput([ImageChunk(b"x", "png")]).to_ints()


@pytest.mark.parametrize(
    "chunk", [ImageChunk(b"x", "png"), ImageAssetPointerChunk("l", "png"), DmelChunk(b"x")]
)
def test_length_that_nobody_knows_is_refused(chunk):
    with pytest.raises(InputError, match="expected_tokens"):
        _ = chunk.length


def test_dump_and_validate_are_inverse():
    original = ModelInput(
        [
            EncodedTextChunk([1, 2]),
            ImageChunk(b"\xff\xd8", "jpeg", 3),
            ImageAssetPointerChunk("asset", "png"),
            DmelChunk(b"\x07"),
        ]
    )
    assert ModelInput.model_validate(original.model_dump()) == original


def test_image_data_is_taken_as_bytes_or_base64():
    """A1.4"""
    assert ImageChunk("/9g=", "jpeg").data == b"\xff\xd8"
    with pytest.raises(InputError, match="base64"):
        ImageChunk("?", "jpeg")


@pytest.mark.parametrize(
    "value",
    [
        5,
        {},
        {"chunks": 5},
        {"chunks": "text"},
        {"chunks": [5]},
        {"chunks": [{"type": "riddle"}]},
        {"chunks": [{"type": "image", "data": "", "format": "gif"}]},
        {"chunks": [{"type": "encoded_text", "tokens": [1], "odd": 2}]},
        {"chunks": [], "odd": 1},
        {"chunks": [{"type": []}]},
        {"chunks": [{"type": None}]},
        {"chunks": [{"type": "encoded_text"}]},
        {"chunks": [{"type": "encoded_text", "tokens": {}}]},
        {"chunks": [{"type": "image", "data": "", "format": []}]},
        {"chunks": [{"type": "image", "data": 5, "format": "png"}]},
        {"chunks": [{"type": "image", "data": "", "format": "png", "expected_tokens": "7"}]},
        {"chunks": [{"type": "image", "data": "", "format": "png", "expected_tokens": -7}]},
        {"chunks": [{"type": "image", "data": "", "format": "png", "expected_tokens": True}]},
        {"chunks": [{"type": "image_asset_pointer", "location": 5, "format": "png"}]},
        {"chunks": [{"type": "image_asset_pointer", "location": "l", "format": "gif"}]},
        {"chunks": [{"type": "dmel", "dmel": 5}]},
    ],
)
def test_value_of_another_form_is_refused(value):
    with pytest.raises(InputError):
        ModelInput.model_validate(value)
    with pytest.raises(ValidationError):
        SampleRequest.model_validate_json(json.dumps({"prompt": value, "sampling_params": {}}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EncodedTextChunk([1], type="image"),
        lambda: ImageChunk(b"", "gif"),
        lambda: ImageChunk(b"", "png", type="dmel"),
        lambda: DmelChunk(None),
    ],
)
def test_chunk_is_checked_where_it_is_made(make):
    with pytest.raises(InputError):
        make()


def test_numpy_token_ids_are_sent_as_plain_numbers():
    prompt = ModelInput.from_ints(list(np.asarray([1, 2])))
    request = SampleRequest(prompt=prompt, sampling_params=SamplingParams())
    assert prompt.chunks[0].tokens == [1, 2]
    assert type(prompt.chunks[0].tokens[0]) is int
    assert json.loads(request.model_dump_json())["prompt"]["chunks"][0]["tokens"] == [1, 2]


@pytest.mark.parametrize("source", [[1, 2], np.asarray([1, 2]), np.asarray([1, 2], np.int32)])
def test_tokens_that_their_owner_changes_later_change_no_chunk(source):
    chunk = EncodedTextChunk(source)
    source[0] = 9
    assert chunk.tokens == [1, 2]
    assert chunk.tokens_np.tolist() == [1, 2]
    assert chunk.to_wire()["tokens"] == [1, 2]


def test_chunk_is_immutable():
    chunk = EncodedTextChunk([1])
    with pytest.raises(AttributeError, match="immutable"):
        chunk.tokens = [2]
    with pytest.raises(AttributeError, match="immutable"):
        del chunk.tokens


def test_copies_of_every_kind_are_equal():
    original = ModelInput([EncodedTextChunk([1, 2]), ImageChunk(b"x", "png", 3), DmelChunk(b"d")])
    assert pickle.loads(pickle.dumps(original)) == original
    assert copy.deepcopy(original) == original
    assert original.model_copy() == original == original.model_copy(deep=True)
    assert ModelInput.model_validate_json(original.model_dump_json()) == original
    assert original != ModelInput.from_ints([1, 2])


def test_none_is_dumped_unless_left_out():
    image = ImageChunk(b"", "png")
    assert image.model_dump()["expected_tokens"] is None
    assert "expected_tokens" not in image.model_dump(exclude_none=True)
    assert "expected_tokens" not in image.to_wire()
    assert json.loads(DmelChunk(b"a").model_dump_json()) == {"dmel": "YQ==", "type": "dmel"}


def test_text_that_is_no_json_is_refused():
    with pytest.raises(InputError, match="JSON"):
        ModelInput.model_validate_json("{")


def test_chunk_made_from_an_array_equals_one_from_a_list():
    wrapped = EncodedTextChunk.from_array(np.asarray([4, 5], np.int32))
    assert wrapped == EncodedTextChunk([4, 5])
    assert wrapped.tokens == [4, 5]
    assert hash(wrapped) == hash(EncodedTextChunk([4, 5]))


def test_pydantic_message_holds_an_input():
    request = SampleRequest(prompt=ModelInput.from_ints([1]), sampling_params=SamplingParams())
    assert request.model_dump(mode="json")["prompt"] == {
        "chunks": [{"tokens": [1], "type": "encoded_text"}]
    }


CHUNKS = [
    EncodedTextChunk([1, 2]),
    ImageChunk(b"\x89PNG\xff", "png", 3),
    ImageChunk(b"\xff\xd8", "jpeg"),
    ImageAssetPointerChunk("asset", "png"),
    DmelChunk(b"\x07\xff"),
]


@pytest.mark.parametrize("chunk", [*CHUNKS, ModelInput(CHUNKS)])
def test_values_have_what_pydantic_models_have(chunk):
    kind = type(chunk)
    assert kind.model_validate(chunk) is chunk
    assert kind.model_validate(chunk.model_dump()) == chunk
    assert kind.model_validate_json(chunk.model_dump_json(indent=2)) == chunk
    assert "\n  " in chunk.model_dump_json(indent=2)
    assert chunk.model_copy() == chunk.model_copy(deep=True) == chunk
    first = next(iter(chunk.model_dump()))
    assert chunk.model_dump(include={first}) == {first: chunk.model_dump()[first]}
    assert first not in chunk.model_dump(exclude={first})
    assert first not in json.loads(chunk.model_dump_json(exclude={first}))
    for wrong in ({"odd": 1}, 5, None, [chunk.model_dump()]):
        with pytest.raises(InputError):
            kind.model_validate(wrong)
    with pytest.raises(InputError, match="JSON"):
        kind.model_validate_json("{")


def test_copy_with_other_values_is_checked():
    image = ImageChunk(b"\xff", "png")
    assert image.model_copy(update={"expected_tokens": 3}) == ImageChunk(b"\xff", "png", 3)
    assert image.model_copy(update={"data": b"\xfe"}).data == b"\xfe"
    assert EncodedTextChunk([1]).model_copy(update={"tokens": [2]}).tokens == [2]
    other = ModelInput(CHUNKS).model_copy(update={"chunks": CHUNKS[:1]})
    assert other.to_ints() == [1, 2]
    for value in (image, other):
        with pytest.raises(InputError):
            value.model_copy(update={"odd": 1})


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("annotation", ["its own", ModelInputChunk])
def test_chunks_are_fields_of_a_programs_own_pydantic_models(chunk, annotation):
    kind = type(chunk) if annotation == "its own" else annotation
    row = create_model("Row", chunk=(kind, ...))
    again = row.model_validate_json(row(chunk=chunk).model_dump_json())
    assert again.chunk == row.model_validate(row(chunk=chunk).model_dump()).chunk == chunk
    properties = row.model_json_schema()["properties"]["chunk"]
    assert "anyOf" in properties or properties["type"] == "object"
    with pytest.raises(ValidationError):
        row(chunk={"type": "riddle"})


@pytest.mark.parametrize("kind", [ModelInput, *(type(chunk) for chunk in CHUNKS)])
def test_fields_are_described_as_pydantic_describes_those_of_a_model(kind):
    fields = kind.model_fields
    assert [name for name, one in fields.items() if one.is_required()] == [
        name for name in kind.model_json_schema()["required"] if name != "type"
    ]
    value = ModelInput(CHUNKS) if kind is ModelInput else next(c for c in CHUNKS if type(c) is kind)
    assert type(value).model_fields.keys() == value.model_dump().keys()
    assert value.model_fields_set == value.model_dump(exclude_none=True).keys()
    assert kind.model_construct(**{name: getattr(value, name) for name in fields}) == value


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [ModelInput, *(type(chunk) for chunk in CHUNKS)])
def test_fields_and_defaults_are_the_official_ones(kind):
    tinker = pytest.importorskip("tinker")
    theirs = getattr(tinker.types, kind.__name__).model_fields
    assert {name: one.is_required() for name, one in kind.model_fields.items()} == {
        name: one.is_required() for name, one in theirs.items()
    }
    for name, one in theirs.items():
        assert kind.model_fields[name].get_default() == one.get_default()
