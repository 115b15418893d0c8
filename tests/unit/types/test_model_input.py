"""ModelInput and its chunks."""

import numpy as np
import pytest

from tinkex.errors import InputError
from tinkex.types import (
    DmelChunk,
    EncodedTextChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    ModelInput,
    SampleRequest,
    SamplingParams,
)


@pytest.mark.parametrize("tokens", [[1, 2, 3], (1, 2, 3), np.asarray([1, 2, 3]), range(1, 4)])
def test_tokens_of_any_sequence_come_back_as_ints(tokens):
    given = ModelInput.from_ints(tokens)
    assert given.to_ints() == [1, 2, 3]
    assert given.length == 3
    assert given.chunks[0].tokens_np.dtype == np.int32


@pytest.mark.parametrize("tokens", [["a"], [1.5], [[1], [2]], [2**31], [None], 5, "text"])
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
    ],
)
def test_value_of_another_form_is_refused(value):
    with pytest.raises(InputError):
        ModelInput.model_validate(value)


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
