"""What a model reads: chunks of tokens and images, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic_core import CoreSchema

from tinkex.errors import InputError
from tinkex.types._value import Value
from tinkex.types.chunks import CHUNK_SCHEMA, EncodedTextChunk, ModelInputChunk, chunk_from_wire


@dataclass(frozen=True, slots=True)
class ModelInput(Value):
    """A prompt or a training input: chunks in order. Immutable; `append` gives a new one."""

    chunks: list[ModelInputChunk]

    def __post_init__(self) -> None:
        object.__setattr__(self, "chunks", [chunk_from_wire(chunk) for chunk in self.chunks])

    @classmethod
    def from_ints(cls, tokens: Sequence[int] | npt.NDArray[Any]) -> Self:
        """Make an input of one text chunk from token ids [T]."""
        return cls([EncodedTextChunk(tokens)])

    @classmethod
    def from_text(cls, text: str, tokenizer: Any) -> Self:
        """Make an input of one text chunk from text.

        Args:
            text: the text; no special tokens are added.
            tokenizer: a tokenizer, such as `get_tokenizer()` gives.
        """
        return cls.from_ints(list(tokenizer.encode(text, add_special_tokens=False)))

    @classmethod
    def empty(cls) -> Self:
        """Make an input without chunks."""
        return cls([])

    @property
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
        last = EncodedTextChunk([token])
        if self.chunks and isinstance(self.chunks[-1], EncodedTextChunk):
            joined = np.append(self.chunks[-1].tokens_np, last.tokens_np)
            return type(self)([*self.chunks[:-1], EncodedTextChunk.from_array(joined)])
        return self.append(last)

    def _fields(self, *, exclude_none: bool) -> dict[str, Any]:
        return {"chunks": [chunk.model_dump(exclude_none=exclude_none) for chunk in self.chunks]}

    def model_copy(
        self,
        *,
        update: Mapping[str, Any] | None = None,
        deep: bool = False,  # noqa: ARG002 - pydantic's parameter; what is immutable is shared
    ) -> Self:
        """Return a copy, with other chunks where `update` has them.

        Raises:
            InputError: `update` names another field, or has no chunks.
        """
        return self.model_validate({"chunks": self.chunks, **(update or {})})

    @classmethod
    def _read(cls, value: Any) -> Self:
        if not isinstance(value, Mapping) or set(value) != {"chunks"}:
            raise InputError('A model input is an object with the one key "chunks".')
        chunks = value["chunks"]
        if not isinstance(chunks, Iterable) or isinstance(chunks, str | bytes | Mapping):
            raise InputError('"chunks" of a model input is a list.')
        return cls(list(chunks))

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: object) -> dict[str, Any]:
        """Describe the JSON form."""
        return {
            "type": "object",
            "properties": {"chunks": {"type": "array", "items": CHUNK_SCHEMA}},
            "required": ["chunks"],
            "additionalProperties": False,
        }
