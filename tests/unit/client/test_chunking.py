from __future__ import annotations

import pytest

from tinkex.client.chunking import (
    ChunkLimits,
    estimate_datum_bytes,
    estimate_prompt_bytes,
    split_data,
)
from tinkex.errors import InputError
from tinkex.types import Datum, ImageAssetPointerChunk, ImageChunk, ModelInput, TensorData


def datum(tokens: int) -> Datum:
    return Datum(
        model_input=ModelInput.from_ints(list(range(tokens))),
        loss_fn_inputs={
            "target_tokens": TensorData(data=[0] * tokens, dtype="int64", shape=[tokens]),
            "weights": TensorData(data=[1.0] * tokens, dtype="float32", shape=[tokens]),
        },
    )


def sizes(chunks) -> list[int]:
    return [len(chunk.data) for chunk in chunks]


def test_estimate_counts_tokens_and_tensors():
    assert estimate_datum_bytes(datum(10)) == 10 * (4 + 8 + 4)


def test_estimate_of_a_sparse_tensor_counts_its_indices():
    sparse = TensorData(
        data=[1.0, 2.0],
        dtype="float32",
        shape=[2, 100],
        sparse_crow_indices=[0, 1, 2],
        sparse_col_indices=[5, 7],
    )
    one = Datum(model_input=ModelInput.from_ints([]), loss_fn_inputs={"weights": sparse})
    assert estimate_datum_bytes(one) == 2 * 4 + 8 * (3 + 2)


def test_estimate_equals_the_official_one():
    official = pytest.importorskip("tinker.lib.public_interfaces.training_client")
    tinker = pytest.importorskip("tinker")
    theirs = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(range(10))),
        loss_fn_inputs={"target_tokens": list(range(10)), "weights": [1.0] * 10},
    )
    assert official._estimate_datum_bytes_count_proto(theirs) == estimate_datum_bytes(datum(10))


def test_data_within_the_limits_is_one_chunk():
    assert sizes(split_data([datum(4)] * 5, ChunkLimits())) == [5]


def test_count_limit_splits_greedily():
    assert sizes(split_data([datum(4)] * 5, ChunkLimits(max_datums=2))) == [2, 2, 1]


def test_byte_limit_splits_greedily():
    assert sizes(split_data([datum(10)] * 5, ChunkLimits(max_bytes=330))) == [2, 2, 1]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_oversize_datum_goes_alone_and_makes_no_empty_chunk(position):
    data = [datum(4), datum(4)]
    data.insert(position, datum(1000))

    chunks = split_data(data, ChunkLimits(max_bytes=200))

    assert all(chunk.data for chunk in chunks)
    assert [len(row.loss_fn_inputs["weights"].data) for chunk in chunks for row in chunk.data] == [
        len(row.loss_fn_inputs["weights"].data) for row in data
    ]
    assert [len(chunk.data) for chunk in chunks if chunk.estimated_bytes > 200] == [1]


def test_empty_data_is_a_typed_error():
    with pytest.raises(InputError, match="at least one Datum"):
        split_data([], ChunkLimits())


def test_prompt_estimate_counts_images_as_bytes():
    image = ImageChunk(data=b"x" * 100, format="png")
    pointer = ImageAssetPointerChunk(location="s3://bucket/one", format="png")
    chunks = [*ModelInput.from_ints([1, 2, 3]).chunks, image, pointer]
    assert estimate_prompt_bytes(chunks) == 30 + 100 + len("s3://bucket/one")
