"""A loss of the caller's own over log-probabilities, as two requests the server understands.

Owns the mathematics and nothing of the requests. For a loss C of the log-probabilities l the
server is asked twice: forward gives l; backward minimises the linear surrogate
sum(-w * l) with w = -dC/dl, whose gradient by the weights is dC/dl * dl/dtheta: C's own, by the
chain rule. `torch` is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from tinkex.errors import InputError, MissingPackageError
from tinkex.types import Datum, ForwardBackwardOutput, TensorData

CustomLossFn = Callable[[list[Datum], list[Any]], tuple[Any, Mapping[str, float]]]
"""(data, log-probabilities per datum: float32 tensors shaped as `target_tokens`) -> (loss:
a scalar tensor, metrics)."""


@dataclass(frozen=True, slots=True)
class CustomLoss:
    """What the caller's loss came to."""

    backward_data: list[Datum]
    """One per datum: the surrogate's `weights`."""
    metrics: Mapping[str, float]
    value: float


def forward_data(data: Sequence[Datum]) -> list[Datum]:
    """Reduce each datum to what the forward pass needs: target tokens and weights.

    Raises:
        InputError: a datum has no `target_tokens`.
    """
    return [_forward_datum(index, datum) for index, datum in enumerate(data)]


def evaluate(
    loss_fn: CustomLossFn, data: Sequence[Datum], output: ForwardBackwardOutput
) -> CustomLoss:
    """Call the caller's loss and differentiate it by the log-probabilities.

    Raises:
        InputError: the loss is no scalar tensor, does not depend on any log-probability or has a
            gradient that is not finite, or the metrics are no dict.
        Exception: whatever `loss_fn` raises.
    """
    torch = require_torch()
    leaves = [
        row["logprobs"].to_torch().to(torch.float32).clone().requires_grad_(True)
        for row in output.loss_fn_outputs
    ]
    loss, metrics = loss_fn(list(data), leaves)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise InputError(
            "The custom loss must return (loss, metrics) with loss a tensor of one number, "
            f"not {type(loss).__name__}."
        )
    try:
        metrics = dict(metrics)
    except (TypeError, ValueError):  # later, this would fail a call whose gradient is on the server
        raise InputError(
            "The custom loss must return (loss, metrics) with metrics a dict of numbers, not "
            f"{type(metrics).__name__}."
        ) from None
    if loss.requires_grad:
        loss.sum().backward()
    if all(leaf.grad is None for leaf in leaves):
        raise InputError(
            "The custom loss does not depend on the log-probabilities it was given: compute it "
            "from them, without detach() or item()."
        )
    _check_finite(leaves)
    weights = [-leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    backward = [
        _with_inputs(datum, datum.loss_fn_inputs["target_tokens"], TensorData.from_torch(weight))
        for datum, weight in zip(data, weights, strict=True)
    ]
    return CustomLoss(backward, metrics, float(loss.detach().sum().item()))


def finish(output: ForwardBackwardOutput, loss: CustomLoss) -> ForwardBackwardOutput:
    """Give the backward pass's output the caller's loss and metrics.

    The surrogate's own loss moves to `surrogate_loss:sum`.
    """
    metrics = dict(output.metrics)
    surrogate = metrics.pop("loss:sum", None)
    metrics.update(loss.metrics)
    metrics["loss:sum"] = loss.value
    if surrogate is not None:
        metrics["surrogate_loss:sum"] = surrogate
    return ForwardBackwardOutput(
        loss_fn_output_type=output.loss_fn_output_type,
        loss_fn_outputs=output.loss_fn_outputs,
        metrics=metrics,
    )


def require_torch() -> ModuleType:
    """Import torch.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import torch  # noqa: PLC0415 - the client imports without it
    except ImportError as error:
        raise MissingPackageError(
            "forward_backward_custom differentiates the loss with PyTorch: `pip install torch`."
        ) from error
    return torch


def _check_finite(leaves: Sequence[Any]) -> None:
    """Refuse a gradient that no step can be taken with, by the name that the caller knows it by."""
    for index, leaf in enumerate(leaves):
        if leaf.grad is None or leaf.grad.isfinite().all():
            continue
        gradient = leaf.grad.flatten()
        position = int(gradient.isfinite().logical_not().nonzero()[0])
        raise InputError(
            "The custom loss has no usable gradient: that by the log-probabilities of datum "
            f"{index} is {gradient[position].item()} at position {position}."
        )


def _forward_datum(index: int, datum: Datum) -> Datum:
    targets = datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        raise InputError(
            f"Datum {index} has no loss_fn_inputs['target_tokens']: the log-probabilities a "
            "custom loss is given are those of the target tokens."
        )
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        weights = TensorData.from_numpy(np.zeros(targets.dimensions, dtype=np.float32))
    return _with_inputs(datum, targets, weights)


def _with_inputs(datum: Datum, targets: TensorData, weights: TensorData) -> Datum:
    return Datum(
        model_input=datum.model_input,
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
        model_input_spans=datum.model_input_spans,
        loss_fn_input_spans=datum.loss_fn_input_spans,
    )
