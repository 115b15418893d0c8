"""What a training call may ask for. Pure: what no server can do is refused before it is sent.

Only what is wrong for every server is refused here; what one server takes and another does not
(names of losses, keys of their settings, ranks, lengths) is for the server to say.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkex.errors import InputError
from tinkex.types import AdamParams, Datum, DimuonParams, EncodedTextChunk, TensorData
from tinkex.types.tinker_path import SCHEME, check_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from tinkex.types import OptimParams

REQUIRED_INPUTS: Mapping[str, tuple[str, ...]] = {
    "cross_entropy": ("target_tokens",),
    "importance_sampling": ("target_tokens", "logprobs", "advantages"),
    "ppo": ("target_tokens", "logprobs", "advantages"),
    "cispo": ("target_tokens", "logprobs", "advantages"),
    "dro": ("target_tokens", "logprobs", "advantages"),
    "gspo": ("target_tokens", "logprobs", "advantages"),
    "stable_reinforce": ("target_tokens", "advantages"),
}
"""What each loss of the API reads; a loss that is not here is the server's to know."""

PER_TOKEN = frozenset({"target_tokens", "weights", "logprobs", "advantages"})
"""Inputs with one row for each token of the model input."""


def checked_data(data: Sequence[Datum], *, same: bool = False) -> list[Datum]:
    """Copy a call's data: whoever made the call may change them before they are sent.

    Args:
        data: the caller's; a datum is immutable, but what is in its map and its lists is not.
        same: whether the list is copied alone, for a function of the caller's that is to get the
            very data that it knows.

    Raises:
        InputError: it is no list of data, it is empty, or a datum has a negative token, a number
            that is none, or inputs of another length than its tokens.
    """
    if isinstance(data, Datum) or not hasattr(data, "__iter__"):
        raise InputError(f"data must be a list of Datum, not {type(data).__name__}.")
    snapshot = list(data)
    if not snapshot:
        raise InputError("No data: the list of datums is empty. Pass at least one Datum.")
    for index, datum in enumerate(snapshot):
        if not isinstance(datum, Datum):
            raise InputError(f"data[{index}] must be a Datum, not {type(datum).__name__}.")
        try:
            if not same:
                snapshot[index] = _copied(datum)
            _check_datum(snapshot[index])
        except InputError as error:
            raise InputError(f"data[{index}]: {error}") from None
    return snapshot


def _copied(datum: Datum) -> Datum:
    """Copy a datum, without the tokens and tensors, which nobody can change."""
    model_input, positions = datum.model_input_spans, datum.loss_fn_input_spans
    return replace(  # the map is copied where a datum is made
        datum,
        model_input=datum.model_input.model_copy(),
        model_input_spans=None if model_input is None else list(model_input),
        loss_fn_input_spans=None if positions is None else list(positions),
    )


def check_loss(
    data: Sequence[Datum], loss_fn: object, config: Mapping[str, float | str] | None
) -> None:
    """See that the data have what the loss reads, and that its settings are numbers or words.

    Raises:
        InputError: naming what is missing or wrong.
    """
    if not isinstance(loss_fn, str) or not loss_fn:
        raise InputError(f"loss_fn must be the name of a loss, not {loss_fn!r}.")
    required = REQUIRED_INPUTS.get(loss_fn, ())
    for index, datum in enumerate(data):
        missing = [name for name in required if name not in datum.loss_fn_inputs]
        if missing:
            raise InputError(f"data[{index}]: {loss_fn} needs loss_fn_inputs {', '.join(missing)}.")
    for name, value in (config or {}).items():
        if not isinstance(value, str):
            _check_number(f"loss_fn_config[{name!r}]", value, -math.inf)


def check_optimizer(params: OptimParams) -> None:
    """Refuse hyperparameters with which no step can be taken.

    Raises:
        InputError: naming the parameter.
    """
    _check_number("learning_rate", params.learning_rate, 0)
    is_dimuon = isinstance(params, DimuonParams)
    _check_number("grad_clip_norm", params.grad_clip_norm, -math.inf if is_dimuon else 0)
    betas = ("beta1",) if is_dimuon else ("beta1", "beta2")
    for name in betas:
        value = getattr(params, name)
        if not 0 <= value < 1:
            raise InputError(f"{name} must be at least 0 and below 1, not {value}.")
    if isinstance(params, AdamParams):
        for name in ("eps", "weight_decay"):
            _check_number(name, getattr(params, name), 0)


def check_checkpoint(name: object, ttl_seconds: object) -> None:
    """Check the name and the life of a checkpoint to be saved.

    Raises:
        InputError: the name cannot be part of a tinker:// path, or the life is no positive number
            of seconds.
    """
    if not isinstance(name, str):
        raise InputError(f"name must be a string, not {type(name).__name__}.")
    check_part(name, "checkpoint name")
    is_whole = isinstance(ttl_seconds, int) and not isinstance(ttl_seconds, bool)
    if ttl_seconds is not None and not (is_whole and ttl_seconds > 0):  # type: ignore[operator]
        raise InputError(f"ttl_seconds must be a positive whole number, not {ttl_seconds!r}.")


def check_state_path(path: object) -> None:
    """Refuse what is no path of a checkpoint.

    Raises:
        InputError: it does not start with tinker://.
    """
    if not (isinstance(path, str) and path.startswith(SCHEME)):
        raise InputError(f"path {path!r} must start with {SCHEME}, as save_state returns it.")


def _check_datum(datum: Datum) -> None:
    """Check one datum; written for speed, as a batch has many."""
    length, text_only = 0, True
    for chunk in datum.model_input.chunks:
        if isinstance(chunk, EncodedTextChunk):
            tokens = chunk.tokens_np
            length += tokens.size
            if tokens.size and tokens.min() < 0:
                raise InputError("a token of the model input is negative.")
        else:
            text_only = False
    if text_only and not length:
        raise InputError("the model input is empty: give the model at least one token.")
    for name, tensor in datum.loss_fn_inputs.items():
        if not isinstance(tensor, TensorData):
            raise InputError(f"loss_fn_inputs[{name!r}] was set to a {type(tensor).__name__}.")
        values, shape = tensor.values, tensor.shape
        if text_only and name in PER_TOKEN:
            rows = values.size if shape is None else shape[0] if shape else None
            if rows != length:
                raise InputError(
                    f"loss_fn_inputs[{name!r}] has shape {list(tensor.dimensions)}, and the model "
                    f"input has {length} tokens: one row for each token is needed."
                )
        # the sum of squares is finite wherever all values are, unless they are huge
        if tensor.dtype == "float32" and not math.isfinite(values.dot(values)):
            _check_finite(name, values)


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        where = int(bad[0])
        raise InputError(f"loss_fn_inputs[{name!r}] is {values[where]} at position {where}.")


def _check_number(name: str, value: Any, least: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= least):
        kind = "a finite number" if least == -math.inf else "a finite number of at least 0"
        raise InputError(f"{name} must be {kind}, not {value!r}.")
