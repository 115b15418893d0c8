"""The chunks of a model input: text, images, audio."""

from __future__ import annotations

import base64
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic_core import CoreSchema

from tinkex.errors import InputError
from tinkex.types._packing import packed
from tinkex.types._value import Value

_INT32 = np.iinfo(np.int32)


def _as_tokens(tokens: Any) -> npt.NDArray[np.int32]:
    """Return token ids as int32 [T], in memory that the caller does not write into.

    Raises:
        InputError: for anything but a flat sequence of whole numbers that fit into 32 bits.
    """
    fresh = packed(tokens, "i")
    if fresh is not None and fresh.size and fresh.max() > 1:  # 0 and 1 may be booleans
        return fresh
    try:
        array = np.asarray(tokens)
    except (ValueError, OverflowError) as error:
        raise InputError(f"Tokens must be a flat list of integers: {error}") from error
    if array.dtype.kind == "f" and (np.abs(array) < 2**53).all() and (array % 1 == 0).all():
        array = array.astype(np.int64)  # as everywhere: a float without a fraction is whole
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"Tokens must be a flat list of integers, not {array.ndim}-dimensional {array.dtype}."
        )
    is_wide = array.size and array.dtype != np.int32
    if is_wide and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise InputError("A token id does not fit into 32 bits.")
    # an array that may still be written into is copied: encoding comes after the call returned
    return array.astype("<i4", copy=array.flags.writeable and isinstance(tokens, np.ndarray))


class _Chunk(Value):
    """What the chunks share."""

    __slots__ = ()

    def _all_fields(self) -> dict[str, Any]:
        """Return the JSON form, with the fields that are None."""
        raise TypeError("a chunk is one of the four kinds")

    def _fields(self, *, exclude_none: bool) -> dict[str, Any]:
        fields = self._all_fields()
        if not exclude_none:
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: object) -> dict[str, Any]:
        """Describe the JSON form."""
        return _SCHEMAS[cls.__name__]


class EncodedTextChunk(_Chunk):
    """Tokens of text. Immutable.

    Args:
        tokens: token ids, a list or an integer array [T]; an array is copied.
        type: the word of the wire; there is no other.

    Raises:
        InputError: for anything but a flat sequence of integers that fit into 32 bits.
    """

    __slots__ = ("_list", "_tokens")
    __match_args__ = ("tokens",)

    _list: list[int] | None
    _tokens: npt.NDArray[np.int32]

    def __init__(
        self,
        tokens: Sequence[int] | npt.NDArray[Any],
        type: Literal["encoded_text"] = "encoded_text",  # noqa: A002 - the wire's name
    ) -> None:
        _check_type(type, "encoded_text")
        object.__setattr__(self, "_tokens", _as_tokens(tokens))
        object.__setattr__(self, "_list", None)

    @classmethod
    def from_array(cls, tokens: npt.NDArray[np.int32]) -> Self:
        """Wrap int32 ids [T] that nobody writes into, without looking at them."""
        chunk = cls.__new__(cls)
        object.__setattr__(chunk, "_tokens", tokens)
        object.__setattr__(chunk, "_list", None)
        return chunk

    @property
    def type(self) -> Literal["encoded_text"]:
        """The word of the wire."""
        return "encoded_text"

    @property
    def tokens(self) -> list[int]:
        """The token ids; the list is made when it is first asked for."""
        if self._list is None:
            object.__setattr__(self, "_list", self._tokens.tolist())
        return self._list  # type: ignore[return-value]  # set in the line above

    @property
    def tokens_np(self) -> npt.NDArray[np.int32]:
        """The token ids, int32 [T]. Do not write into it."""
        return self._tokens

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: a chunk may be shared."""
        raise AttributeError(f"A chunk is immutable: make a new one to change {name}.")

    def __delattr__(self, name: str) -> None:
        """Refuse: a chunk may be shared."""
        raise AttributeError(f"A chunk is immutable: cannot delete {name}.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy through the constructor."""
        return EncodedTextChunk, (self._tokens,)

    def __repr__(self) -> str:
        """Show the tokens."""
        return f"EncodedTextChunk(tokens={self.tokens}, type='encoded_text')"

    def __eq__(self, other: object) -> bool:
        """Compare the tokens."""
        if not isinstance(other, EncodedTextChunk):
            return NotImplemented
        return np.array_equal(self._tokens, other._tokens)

    def __hash__(self) -> int:
        """Hash the tokens."""
        return hash(self._tokens.tobytes())

    def _all_fields(self) -> dict[str, Any]:
        # not the list that `tokens` keeps: it is somebody's to change
        return {"tokens": self._tokens.tolist(), "type": "encoded_text"}


def _check_type(given: object, expected: str) -> None:
    if given != expected:
        raise InputError(f"This chunk is of type {expected!r}, not {given!r}.")


def _as_bytes(data: Any, what: str) -> bytes:
    """Decode base64 text; bytes stay."""
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if not isinstance(data, str):
        raise InputError(f"The {what} must be bytes or base64 text, not {type(data).__name__}.")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise InputError(f"The {what} is not valid base64: {error}") from error


def _check_format(image_format: object) -> None:
    if image_format not in ("png", "jpeg"):
        raise InputError(f"An image of format {image_format!r} is not known: png or jpeg.")


def _token_count(expected_tokens: Any) -> int | None:
    """Return a number of tokens as a plain int; None stays."""
    if expected_tokens is None:
        return None
    try:
        count = operator.index(expected_tokens)
    except TypeError:
        count = -1
    if isinstance(expected_tokens, bool) or not 0 <= count <= _INT32.max:
        raise InputError(f"expected_tokens must be a number of tokens, not {expected_tokens!r}.")
    return count


def _length_of(kind: str, expected_tokens: int | None) -> int:
    if expected_tokens is None:
        raise InputError(f"The {kind} has no length: set expected_tokens to say how many.")
    return expected_tokens


@dataclass(frozen=True, slots=True)
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
        object.__setattr__(self, "data", _as_bytes(self.data, "data of an image"))
        _check_format(self.format)
        object.__setattr__(self, "expected_tokens", _token_count(self.expected_tokens))
        _check_type(self.type, "image")

    @property
    def length(self) -> int:
        """Number of tokens; InputError when `expected_tokens` is not set."""
        return _length_of("image", self.expected_tokens)

    def _all_fields(self) -> dict[str, Any]:
        return {
            "data": base64.b64encode(self.data).decode(),
            "format": self.format,
            "expected_tokens": self.expected_tokens,
            "type": self.type,
        }


@dataclass(frozen=True, slots=True)
class ImageAssetPointerChunk(_Chunk):
    """An image by its location on the server's side; only sampling takes it."""

    location: str
    format: Literal["png", "jpeg"]
    expected_tokens: int | None = None
    type: Literal["image_asset_pointer"] = "image_asset_pointer"

    def __post_init__(self) -> None:
        if not isinstance(self.location, str):
            raise InputError(f"The location of an image must be text, not {self.location!r}.")
        _check_format(self.format)
        object.__setattr__(self, "expected_tokens", _token_count(self.expected_tokens))
        _check_type(self.type, "image_asset_pointer")

    @property
    def length(self) -> int:
        """Number of tokens; InputError when `expected_tokens` is not set."""
        return _length_of("image", self.expected_tokens)

    def _all_fields(self) -> dict[str, Any]:
        return {
            "location": self.location,
            "format": self.format,
            "expected_tokens": self.expected_tokens,
            "type": self.type,
        }


@dataclass(frozen=True, slots=True)
class DmelChunk(_Chunk):
    """Audio as discretised mel features, one byte each."""

    dmel: bytes
    type: Literal["dmel"] = "dmel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dmel", _as_bytes(self.dmel, "dmel of a chunk"))
        _check_type(self.type, "dmel")

    @property
    def length(self) -> int:
        """Not known to the client: raises InputError."""
        return _length_of("dmel chunk", None)

    def _all_fields(self) -> dict[str, Any]:
        return {"dmel": base64.b64encode(self.dmel).decode(), "type": self.type}


ModelInputChunk = EncodedTextChunk | ImageChunk | ImageAssetPointerChunk | DmelChunk

CHUNK_TYPES: dict[str, type[Any]] = {
    "encoded_text": EncodedTextChunk,
    "image": ImageChunk,
    "image_asset_pointer": ImageAssetPointerChunk,
    "dmel": DmelChunk,
}
"""The class of each `type` word."""


def _object_schema(kind: str, required: list[str], **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**fields, "type": {"const": kind}},
        "required": required if kind == "encoded_text" else [*required, "type"],
        "additionalProperties": False,
    }


_IMAGE_FIELDS: dict[str, Any] = {
    "format": {"enum": ["png", "jpeg"]},
    "expected_tokens": {"type": ["integer", "null"], "minimum": 0, "maximum": int(_INT32.max)},
}
_TOKEN_SCHEMA = {"type": "integer", "minimum": int(_INT32.min), "maximum": int(_INT32.max)}
_BASE64_SCHEMA = {"type": "string", "contentEncoding": "base64"}

_SCHEMAS = {
    "EncodedTextChunk": _object_schema(
        "encoded_text", ["tokens"], tokens={"type": "array", "items": _TOKEN_SCHEMA}
    ),
    "ImageChunk": _object_schema("image", ["data", "format"], data=_BASE64_SCHEMA, **_IMAGE_FIELDS),
    "ImageAssetPointerChunk": _object_schema(
        "image_asset_pointer",
        ["location", "format"],
        location={"type": "string"},
        **_IMAGE_FIELDS,
    ),
    "DmelChunk": _object_schema("dmel", ["dmel"], dmel=_BASE64_SCHEMA),
}

CHUNK_SCHEMA: dict[str, Any] = {"anyOf": list(_SCHEMAS.values())}
"""The JSON schema of a chunk."""


def chunk_from_wire(value: Any) -> ModelInputChunk:
    """Read the JSON form of a chunk, or take a chunk as it is.

    Raises:
        InputError: when the value has another form.
    """
    if isinstance(value, ModelInputChunk):
        return value
    if not isinstance(value, Mapping):
        raise InputError(f"A chunk is an object with a type, not {type(value).__name__}.")
    fields = {name: field for name, field in value.items() if name != "type"}
    kind = value.get("type", "encoded_text")
    if not isinstance(kind, str) or kind not in CHUNK_TYPES:
        known = ", ".join(CHUNK_TYPES)
        raise InputError(f"A chunk of type {kind!r} is not known; the types are {known}.")
    try:
        return CHUNK_TYPES[kind](**fields)  # type: ignore[no-any-return]  # by construction
    except TypeError as error:
        raise InputError(f"A chunk of type {kind!r} has wrong fields: {error}") from error
