"""Counting the parts of an encoded forward_backward request before anything is made of them.

Owns the count alone. Two bytes of an encoded message can stand for a part that takes fifty when it
is decoded, and a thousand as a Python object: a body within the limit on bytes could otherwise take
all memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinkex.wire import tinkex_public_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

VARINT, FIXED64, LENGTH_DELIMITED, GROUP, GROUP_END, FIXED32 = range(6)
_FIXED = {FIXED64: 8, FIXED32: 4, GROUP: 0, GROUP_END: 0}
"""A group's fields are counted as if they stood beside it."""
MAX_PARTS = 250_000
"""Datums, chunks, tensors, spans, settings and dimensions of one request."""

# What is inside each message, by field number; a field that is not here holds no parts.
_TENSOR: Mapping[int, object] = {pb.Tensor.SHAPE_FIELD_NUMBER: None}
_INPUT_ENTRY: Mapping[int, object] = {2: _TENSOR}
_LEAF: Mapping[int, object] = {}
_DATUM: Mapping[int, object] = {
    pb.Datum.MODEL_INPUT_FIELD_NUMBER: _LEAF,
    pb.Datum.LOSS_FN_INPUTS_FIELD_NUMBER: _INPUT_ENTRY,
    pb.Datum.MODEL_INPUT_SPANS_FIELD_NUMBER: _LEAF,
    pb.Datum.LOSS_FN_INPUT_SPANS_FIELD_NUMBER: _LEAF,
}
_DATA_NUMBER = pb.ForwardBackwardRequest.DATA_FIELD_NUMBER
_REQUEST: Mapping[int, object] = {
    _DATA_NUMBER: _DATUM,
    pb.ForwardBackwardRequest.LOSS_FN_CONFIG_FIELD_NUMBER: _LEAF,
    pb.ForwardBackwardRequest.LOSS_FN_CONFIG_V2_FIELD_NUMBER: _LEAF,
}


def count_parts(body: bytes, *, enough: int = MAX_PARTS) -> tuple[int, int]:
    """Count the parts of an encoded request: (datums, parts), or more than `enough` of them.

    Stops counting above `enough`, and at the first byte that makes no sense: what follows is the
    decoder's to refuse.
    """
    datums = parts = 0
    waiting: list[tuple[int, int, Mapping[int, object]]] = [(0, len(body), _REQUEST)]
    while waiting and parts <= enough:
        place, end, known = waiting.pop()
        while place < end and parts <= enough:
            tag, place = _varint(body, place, end)
            number, kind = tag >> 3, tag & 7
            if place == 0:
                return datums, parts
            size, place = _size(body, place, end, kind)
            if place == 0:
                return datums, parts
            if number in known:
                inside = known[number]
                # A list of numbers is one part for each byte at most; a message is one itself.
                parts += size if inside is None else 1
                datums += known is _REQUEST and number == _DATA_NUMBER
                if inside and kind == LENGTH_DELIMITED:
                    waiting.append((place, place + size, inside))  # type: ignore[arg-type]
            place += size
    return datums, parts


def _size(body: bytes, place: int, end: int, kind: int) -> tuple[int, int]:
    """Return (bytes of a field's value, where it starts); place 0 when it is not whole."""
    if kind == LENGTH_DELIMITED:
        size, place = _varint(body, place, end)
    elif kind == VARINT:
        size = _varint(body, place, end)[1] - place
    else:
        size = _FIXED.get(kind, -1)
    return (size, place) if 0 <= size <= end - place else (0, 0)


def _varint(data: bytes, place: int, end: int) -> tuple[int, int]:
    """Read a varint: (its value, the place after it); place 0 when it is not whole."""
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return 0, 0
