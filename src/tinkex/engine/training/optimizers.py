"""The optimisers by name, and Adam for one adapter, on its flat buffers.

Adam with decoupled weight decay (Kingma & Ba 2014, arXiv 1412.6980; Loshchilov & Hutter 2017, arXiv
1711.05101) and clipping by the global norm. All hyperparameters come with each call. Owns the state
and the formula, not the gradient's accumulation (`adapters`) nor files (`checkpoint`).

Plain tensor operations on one flat buffer: `torch.optim` would import `torch._dynamo` (seconds and
memory) on first use, and its fused kernel's gain is over many small tensors, of which there are
none here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinkex.engine.training.dimuon import (
    DimuonState,
    check_dimuon_params,
    dimuon_step,
    new_dimuon_state,
)
from tinkex.engine.training.optimizer_checks import check_bounds, check_fits, check_step, clipped
from tinkex.errors import InputError
from tinkex.types import AdamParams, DimuonParams, OptimParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tinkex.engine.lora.weights import LoraWeights


@dataclass(slots=True)
class AdamState:
    """Moments of one adapter, [P] float32 each, and the number of steps taken."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int = 0


def new_adam_state(flat: Tensor) -> AdamState:
    """Make the state of an adapter that has taken no step."""
    return AdamState(torch.zeros_like(flat), torch.zeros_like(flat))


def check_adam_params(params: AdamParams) -> None:
    """Check the hyperparameters.

    Raises:
        InputError: naming every value out of range.
    """
    check_bounds("adam_params", params, _BOUNDS)


_BOUNDS = MappingProxyType(
    {
        "learning_rate": (0.0, math.inf),
        "beta1": (0.0, 1.0),
        "beta2": (0.0, 1.0),
        "eps": (0.0, math.inf),
        "weight_decay": (0.0, math.inf),
        "grad_clip_norm": (0.0, math.inf),
    }
)


@torch.no_grad()
def adam_step(
    weights: Tensor, gradient: Tensor, state: AdamState, params: AdamParams
) -> dict[str, float]:
    """Take one step; on any failure weights and state are as before.

    Args:
        weights: [P] float32, changed in place.
        gradient: [P] float32, the sum over all calls since the last step; left alone.
        state: Changed in place.
        params: Checked hyperparameters; `grad_clip_norm` 0 means no clipping.

    Returns:
        `grad_norm` (before clipping) and `learning_rate`.

    Raises:
        InputError: the gradient's norm or the new weights would not be finite.
        EngineError: the state is another adapter's.
    """
    check_fits(weights, state.exp_avg)
    grad, norm = clipped(gradient, params.grad_clip_norm)
    step = state.step + 1
    exp_avg = torch.lerp(state.exp_avg, grad, 1 - params.beta1)
    exp_avg_sq = (state.exp_avg_sq * params.beta2).addcmul_(grad, grad, value=1 - params.beta2)
    correction = math.sqrt(1 - params.beta2**step)
    denominator = (exp_avg_sq.sqrt() / correction).add_(params.eps)
    rate = params.learning_rate / (1 - params.beta1**step)
    updated = weights * (1 - params.learning_rate * params.weight_decay)
    updated.sub_(_quotient(exp_avg, denominator).mul_(rate))
    check_step(updated, exp_avg_sq)
    weights.copy_(updated)
    state.exp_avg, state.exp_avg_sq, state.step = exp_avg, exp_avg_sq, step
    return {"grad_norm": norm, "learning_rate": params.learning_rate}


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, with 0 / 0 = 0: a weight that never had a gradient stays put even at eps 0."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)


OptimizerState = AdamState | DimuonState


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One kind of optimiser."""

    params: type[OptimParams]
    """Class of its hyperparameters."""
    moments: tuple[str, ...]
    """Attributes of its state that are flat buffers [P]; their names are those of its files."""
    new_state: Callable[[Tensor], OptimizerState]
    check: Callable[[Any], None]
    step: Callable[[LoraWeights, Tensor, Any, Any], dict[str, float]]
    """(weights, gradient [P], state, checked hyperparameters) -> metrics; all or nothing."""
    state: Callable[..., OptimizerState]
    """(*moments, step) -> state."""


ADAMW = "adamw"
OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        ADAMW: Optimizer(
            AdamParams,
            ("exp_avg", "exp_avg_sq"),
            new_adam_state,
            check_adam_params,
            lambda weights, gradient, state, params: adam_step(
                weights.flat, gradient, state, params
            ),
            AdamState,
        ),
        "dimuon": Optimizer(
            DimuonParams,
            ("momentum",),
            new_dimuon_state,
            check_dimuon_params,
            dimuon_step,
            DimuonState,
        ),
    }
)
"""By the name of the wire (`optimizer_config.type`)."""


def find_optimizer(name: str) -> Optimizer:
    """Find an optimiser by its wire name.

    Raises:
        InputError: there is none of this name.
    """
    optimizer = OPTIMIZERS.get(name)
    if optimizer is None:
        raise InputError(f"unknown optimizer {name!r}; this server has {', '.join(OPTIMIZERS)}")
    return optimizer
