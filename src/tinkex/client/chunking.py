"""Split the data of one call into chunks of the size the server asks for. Pure.

Greedy and in order: a new chunk begins when the next datum would be one too many, or would bring
a chunk that holds something over the byte limit. A datum over the limit alone goes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinkex.errors import InputError
from tinkex.types import DmelChunk, ImageAssetPointerChunk, ImageChunk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.types import Datum, ModelInputChunk, TensorData

_TOKEN_BYTES = 4
_SPARSE_INDEX_BYTES = 8
_SAMPLE_TOKEN_BYTES = 10
"""A token in a JSON sample request: its digits, a comma and some room."""


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """What the server's client config asks for."""

    max_datums: int = 1024
    max_bytes: int = 5_000_000
    """Estimated size of an encoded chunk, before compression."""


class Chunk(NamedTuple):
    """Datums that travel in one request."""

    data: list[Datum]
    estimated_bytes: int


def split_data(data: Sequence[Datum], limits: ChunkLimits) -> list[Chunk]:
    """Split `data` into chunks, at least one.

    Raises:
        InputError: there is no data.
    """
    if len(data) == 0:
        raise InputError("No data: the list of datums is empty. Pass at least one Datum.")
    chunks: list[Chunk] = []
    datums: list[Datum] = []
    size = 0
    for datum in data:
        datum_size = estimate_datum_bytes(datum)
        full = len(datums) >= limits.max_datums or size + datum_size > limits.max_bytes
        if datums and full:
            chunks.append(Chunk(datums, size))
            datums, size = [], 0
        datums.append(datum)
        size += datum_size
    chunks.append(Chunk(datums, size))
    return chunks


def estimate_datum_bytes(datum: Datum) -> int:
    """Estimate the bytes of a datum in a forward_backward request."""
    tokens = sum(_input_bytes(chunk, _TOKEN_BYTES) for chunk in datum.model_input.chunks)
    return tokens + sum(_tensor_bytes(tensor) for tensor in datum.loss_fn_inputs.values())


def estimate_prompt_bytes(chunks: Sequence[ModelInputChunk]) -> int:
    """Estimate the bytes of a prompt in a sample request."""
    return sum(_input_bytes(chunk, _SAMPLE_TOKEN_BYTES) for chunk in chunks)


def _input_bytes(chunk: ModelInputChunk, token_bytes: int) -> int:
    if isinstance(chunk, ImageChunk):
        return len(chunk.data)
    if isinstance(chunk, DmelChunk):
        return len(chunk.dmel)
    if isinstance(chunk, ImageAssetPointerChunk):
        return len(chunk.location)
    return chunk.length * token_bytes


def _tensor_bytes(tensor: TensorData) -> int:
    indices = len(tensor.sparse_crow_indices or ()) + len(tensor.sparse_col_indices or ())
    return tensor.values.nbytes + indices * _SPARSE_INDEX_BYTES
