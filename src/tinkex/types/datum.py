"""Datum: one training example, and where its tokens came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tinkex.errors import InputError
from tinkex.types._packing import packed
from tinkex.types.model_input import ModelInput
from tinkex.types.tensor_data import TensorData, TensorDtype

if TYPE_CHECKING:
    from collections.abc import Sequence

LossFnInputs = dict[str, TensorData]

LIST_DTYPES: Mapping[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}
"""The dtype a plain list takes, by key; an array brings its own."""

SPARSE_KEYS = frozenset({"target_tokens", "weights"})
"""Keys whose 2-D torch tensors travel as sparse rows where that is smaller."""


@dataclass(frozen=True, kw_only=True)
class PromptProvenanceSpan:
    """Positions that are the prompt of a sampled sequence.

    Raises:
        InputError: no sequence is named, or a number is negative.
    """

    sequence_id: str
    offset: int = 0
    """Where the run begins in the prompt, from 0."""
    length: int
    """Positions in the run; it may be empty."""

    def __post_init__(self) -> None:
        _check_span(self)


@dataclass(frozen=True, kw_only=True)
class SampledProvenanceSpan:
    """Positions that were sampled as part of a sequence.

    Raises:
        InputError: no sequence is named, or a number is negative.
    """

    sequence_id: str
    offset: int = 0
    """Where the run begins in the sampled tokens, from 0."""
    length: int
    """Positions in the run; it may be empty."""

    def __post_init__(self) -> None:
        _check_span(self)


ProvenanceSpan = PromptProvenanceSpan | SampledProvenanceSpan
ProvenanceSpans = list[ProvenanceSpan]


def _check_span(span: ProvenanceSpan) -> None:
    if not isinstance(span.sequence_id, str) or not span.sequence_id:
        raise InputError("A provenance span needs the sequence_id of a sampled sequence.")
    for name in ("offset", "length"):
        value = getattr(span, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{name} of a provenance span must be 0 or more, not {value!r}.")


@dataclass(frozen=True)
class Datum:
    """One training example. Immutable.

    Args:
        model_input: what the model reads, N tokens.
        loss_fn_inputs: the loss function's tensors by name, mostly of length N. Lists, NumPy
            arrays and torch tensors are taken and become TensorData.
        model_input_spans: which sampled sequence each part of the input came from.
        loss_fn_input_spans: the same for the positions of the loss inputs; both or neither.

    Raises:
        InputError: for a list under a key without a known dtype, or an unsendable array.
    """

    model_input: ModelInput
    loss_fn_inputs: LossFnInputs = field(default_factory=dict)
    model_input_spans: ProvenanceSpans | None = None
    loss_fn_input_spans: ProvenanceSpans | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_input", ModelInput.model_validate(self.model_input))
        inputs = {key: _tensor(key, value) for key, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", inputs)
        for spans in (self.model_input_spans, self.loss_fn_input_spans):
            for span in spans or ():
                if not isinstance(span, PromptProvenanceSpan | SampledProvenanceSpan):
                    raise InputError(
                        "Provenance spans are PromptProvenanceSpan or SampledProvenanceSpan, not "
                        f"{type(span).__name__}."
                    )

    def with_provenance(
        self, model_input: ProvenanceSpans, loss_fn_inputs: ProvenanceSpans
    ) -> Self:
        """Return a copy that says which sampled sequences its positions came from.

        Args:
            model_input: runs that tile the tokens of the model input.
            loss_fn_inputs: runs that tile the positions of `target_tokens`.

        Raises:
            InputError: the runs are longer or shorter than what they tile.
        """
        targets = self.loss_fn_inputs.get("target_tokens")
        _check_tiling("model_input", model_input, self.model_input.length)
        if targets is not None:
            _check_tiling("loss_fn_inputs", loss_fn_inputs, targets.dimensions[0])
        return replace(self, model_input_spans=model_input, loss_fn_input_spans=loss_fn_inputs)


def _check_tiling(name: str, spans: ProvenanceSpans, positions: int) -> None:
    covered = sum(span.length for span in spans)
    if covered != positions:
        raise InputError(f"The spans of {name} cover {covered} positions of {positions}.")


def _tensor(key: str, value: Any) -> TensorData:
    if isinstance(value, TensorData):
        return value
    if isinstance(value, np.ndarray):
        return TensorData.from_numpy(value)
    if hasattr(value, "detach"):  # a torch tensor, known without importing torch
        tensor = TensorData.from_torch(value)
        is_matrix = len(tensor.dimensions) == 2
        return tensor.to_sparse() if key in SPARSE_KEYS and is_matrix else tensor
    if isinstance(value, Mapping):
        return TensorData(**value)
    return _tensor_from_list(key, value)


def _tensor_from_list(key: str, value: Sequence[Any]) -> TensorData:
    if key not in LIST_DTYPES:
        known = ", ".join(LIST_DTYPES)
        raise InputError(
            f"loss_fn_inputs[{key!r}] is a plain list, whose dtype is only known for {known}. "
            "Pass a NumPy array or a TensorData."
        )
    dtype = LIST_DTYPES[key]
    fresh = packed(value, "q" if dtype == "int64" else "f")
    if fresh is not None:
        return TensorData.of_checked(fresh, [fresh.size])
    try:
        array = np.asarray(value)
        if not array.size or array.dtype.kind == "b":
            array = array.astype(np.int64)
        return TensorData(array, dtype, array.shape)
    except (InputError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"loss_fn_inputs[{key!r}] is no array of numbers: {error}") from error
