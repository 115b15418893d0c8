"""What a model reads: chunks of tokens and images, in order."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from tinkex.errors import InputError

_INT32 = np.iinfo(np.int32)


def _as_tokens(tokens: Any) -> npt.NDArray[np.int32]:
    """Return token ids as int32 [T].

    Raises:
        InputError: for anything but a flat sequence of integers that fit into 32 bits.
    """
    try:
        array = np.asarray(tokens)
    except (ValueError, OverflowError) as error:
        raise InputError(f"Tokens must be a flat list of integers: {error}") from error
    if array.size == 0:
        return np.zeros(0, dtype="<i4")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"Tokens must be a flat list of integers, not {array.ndim}-dimensional {array.dtype}."
        )
    if array.dtype != np.int32 and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise InputError("A token id does not fit into 32 bits.")
    return array.astype("<i4", copy=False)


class _Chunk:
    """What the chunks share: the methods people know from pydantic."""

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return the fields as plain values."""
        return self.to_wire()

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        raise TypeError("a chunk is one of the four kinds")


@dataclass(frozen=True, eq=False)
class EncodedTextChunk(_Chunk):
    """Tokens of text.

    Args:
        tokens: token ids, a list or an integer array [T].
    """

    tokens: Sequence[int] | npt.NDArray[Any]
    type: Literal["encoded_text"] = "encoded_text"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tokens_np", _as_tokens(self.tokens))
        if isinstance(self.tokens, np.ndarray):
            object.__setattr__(self, "tokens", self.tokens_np.tolist())

    @classmethod
    def from_array(cls, tokens: npt.NDArray[np.int32]) -> Self:
        """Wrap int32 ids [T] without making a list of them."""
        chunk = cls.__new__(cls)
        object.__setattr__(chunk, "_tokens_np", tokens)
        return chunk

    def __getattr__(self, name: str) -> Any:
        """Make the list of a chunk that was wrapped from an array, when it is asked for."""
        if name == "tokens":
            tokens = self.tokens_np.tolist()
            object.__setattr__(self, "tokens", tokens)
            return tokens
        raise AttributeError(name)

    @property
    def tokens_np(self) -> npt.NDArray[np.int32]:
        """The token ids, int32 [T]. Do not write into it."""
        return self.__dict__["_tokens_np"]  # type: ignore[no-any-return]  # set in __post_init__

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens_np)

    def __eq__(self, other: object) -> bool:
        """Compare the tokens."""
        if not isinstance(other, EncodedTextChunk):
            return NotImplemented
        return np.array_equal(self.tokens_np, other.tokens_np)

    def __hash__(self) -> int:
        """Hash the tokens."""
        return hash(self.tokens_np.tobytes())

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"tokens": list(self.tokens), "type": self.type}


def _text_or_bytes(data: bytes | str) -> bytes:
    """Decode base64 text; bytes stay."""
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise InputError(f"Data of a chunk is not valid base64: {error}") from error


def _length_of(kind: str, expected_tokens: int | None) -> int:
    if expected_tokens is None:
        raise InputError(f"The {kind} has no length: set expected_tokens to say how many.")
    return expected_tokens


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["expected_tokens"] is None:
        del fields["expected_tokens"]
    return fields


@dataclass(frozen=True)
class ImageChunk(_Chunk):
    """An image by value.

    Args:
        data: the file's bytes, or their base64 text.
        format: the file's format.
        expected_tokens: tokens the image takes, if the caller knows.
    """

    data: bytes
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None
    type: Literal["image"] = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _text_or_bytes(self.data))

    @property
    def length(self) -> int:
        """Number of tokens; InputError when `expected_tokens` is not set."""
        return _length_of("image", self.expected_tokens)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        fields = {
            "data": base64.b64encode(self.data).decode(),
            "format": self.format,
            "expected_tokens": self.expected_tokens,
            "type": self.type,
        }
        return _without_none(fields)


@dataclass(frozen=True)
class ImageAssetPointerChunk(_Chunk):
    """An image by its location on the server's side; only sampling takes it."""

    location: str
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None
    type: Literal["image_asset_pointer"] = "image_asset_pointer"

    @property
    def length(self) -> int:
        """Number of tokens; InputError when `expected_tokens` is not set."""
        return _length_of("image", self.expected_tokens)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        fields = {
            "location": self.location,
            "format": self.format,
            "expected_tokens": self.expected_tokens,
            "type": self.type,
        }
        return _without_none(fields)


@dataclass(frozen=True)
class DmelChunk(_Chunk):
    """Audio as discretised mel features, one byte each."""

    dmel: bytes
    type: Literal["dmel"] = "dmel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dmel", _text_or_bytes(self.dmel))

    @property
    def length(self) -> int:
        """Not known to the client: raises InputError."""
        return _length_of("dmel chunk", None)

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"dmel": base64.b64encode(self.dmel).decode(), "type": self.type}


ModelInputChunk = EncodedTextChunk | ImageChunk | ImageAssetPointerChunk | DmelChunk

CHUNK_TYPES: dict[str, type[Any]] = {
    cls.type: cls for cls in (EncodedTextChunk, ImageChunk, ImageAssetPointerChunk, DmelChunk)
}
"""The class of each `type` word."""


def _chunk_from_wire(value: Any) -> ModelInputChunk:
    if isinstance(value, ModelInputChunk):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"A chunk is an object with a type, not {type(value).__name__}.")
    fields = {name: field for name, field in value.items() if name != "type"}
    kind = value.get("type", "encoded_text")
    if kind not in CHUNK_TYPES:
        known = ", ".join(CHUNK_TYPES)
        raise InputError(f"A chunk of type {kind!r} is not known; the types are {known}.")
    if fields.get("format", "png") not in {"png", "jpeg"}:
        raise InputError(f"An image of format {fields['format']!r} is not known: png or jpeg.")
    try:
        return CHUNK_TYPES[kind](**fields)  # type: ignore[no-any-return]  # by construction
    except TypeError as error:
        raise InputError(f"A chunk of type {kind!r} has wrong fields: {error}") from error


@dataclass(frozen=True)
class ModelInput:
    """A prompt or a training input: chunks in order. Immutable; `append` gives a new one."""

    chunks: list[ModelInputChunk]

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", [_chunk_from_wire(chunk) for chunk in self.chunks])

    @classmethod
    def from_ints(cls, tokens: Sequence[int] | npt.NDArray[Any]) -> Self:
        """Make an input of one text chunk from token ids [T]."""
        return cls([EncodedTextChunk(tokens)])

    @classmethod
    def empty(cls) -> Self:
        """Make an input without chunks."""
        return cls([])

    @cached_property
    def length(self) -> int:
        """Number of tokens.

        Raises:
            InputError: when a chunk does not know its own.
        """
        return sum(chunk.length for chunk in self.chunks)

    def tokens_np(self) -> npt.NDArray[np.int32]:
        """Return all token ids, int32 [T].

        Raises:
            InputError: when a chunk is no text.
        """
        arrays = []
        for chunk in self.chunks:
            if not isinstance(chunk, EncodedTextChunk):
                raise InputError(f"A chunk of type {chunk.type!r} has no token ids.")
            arrays.append(chunk.tokens_np)
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays) if arrays else np.zeros(0, dtype="<i4")

    def to_ints(self) -> list[int]:
        """Return all token ids; InputError when a chunk is no text."""
        tokens: list[int] = self.tokens_np().tolist()
        return tokens

    def append(self, chunk: ModelInputChunk) -> Self:
        """Return an input with one more chunk."""
        return type(self)([*self.chunks, chunk])

    def append_int(self, token: int) -> Self:
        """Return an input with one more token, joined to a text chunk at the end."""
        if self.chunks and isinstance(self.chunks[-1], EncodedTextChunk):
            last = EncodedTextChunk([*self.chunks[-1].tokens, token])
            return type(self)([*self.chunks[:-1], last])
        return self.append(EncodedTextChunk([token]))

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return the fields as plain values."""
        return self.to_wire()

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"chunks": [chunk.to_wire() for chunk in self.chunks]}

    @classmethod
    def model_validate(cls, value: Any) -> Self:
        """Read the JSON form, or take a ModelInput as it is.

        Raises:
            InputError: when the value has another form.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or set(value) != {"chunks"}:
            raise InputError('A model input is an object with the one key "chunks".')
        chunks = value["chunks"]
        if not isinstance(chunks, Iterable) or isinstance(chunks, str | bytes | Mapping):
            raise InputError('"chunks" of a model input is a list.')
        return cls(list(chunks))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic messages hold a ModelInput."""
        return core_schema.no_info_plain_validator_function(
            cls.model_validate,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.to_wire()
            ),
        )
