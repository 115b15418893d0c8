r"""Dimuon for one adapter: momentum, then the matrix sign of each LoRA factor.

The official service's optimiser of this name is not published in full. What is known of it: each
factor moves by the learning rate along a direction of Frobenius norm sqrt(rank), and momentum and
gradient clipping come with each call. That is what a Muon step (Jordan et al. 2024) does on a LoRA
factor, and what we do: with M the momentum of a factor, of rank r,

    M <- beta1 M + (1 - beta1) G
    W <- W - lr * polar(M),   polar(M) = U V^T of M = U S V^T, so that ||polar(M)||_F = sqrt(r)

Ours is exact where Muon iterates: the Gram matrix of a factor is only r x r, so its inverse square
root is taken by eigenvalues in double precision. Directions in which M is zero to rounding are left
out, so B's first step is taken though A has no gradient yet. Nothing here depends on the scale of
the gradient but clipping, which weighs a step's gradient against the earlier ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinkex.engine.training.optimizer_checks import check_bounds, check_fits, check_step, clipped

if TYPE_CHECKING:
    from tinkex.engine.lora.weights import LoraWeights
    from tinkex.types import DimuonParams

_ROUNDING = 1e-12
"""Eigenvalues of the Gram matrix below this share of the largest are zero."""


@dataclass(slots=True)
class DimuonState:
    """Momentum of one adapter, [P] float32, and the number of steps taken."""

    momentum: Tensor
    step: int = 0


def new_dimuon_state(flat: Tensor) -> DimuonState:
    """Make the state of an adapter that has taken no step."""
    return DimuonState(torch.zeros_like(flat))


def check_dimuon_params(params: DimuonParams) -> None:
    """Check the hyperparameters.

    Raises:
        InputError: naming every value out of range.
    """
    check_bounds("optimizer_params", params, _BOUNDS)


_BOUNDS = MappingProxyType(
    {
        "learning_rate": (0.0, math.inf),
        "beta1": (0.0, 1.0),
        "grad_clip_norm": (-math.inf, math.inf),
    }
)


@torch.no_grad()
def dimuon_step(
    weights: LoraWeights, gradient: Tensor, state: DimuonState, params: DimuonParams
) -> dict[str, float]:
    """Take one step; on any failure weights and state are as before.

    Args:
        weights: changed in place.
        gradient: [P] float32, the sum over all calls since the last step; left alone.
        state: changed in place.
        params: checked hyperparameters; a `grad_clip_norm` of 0 or less means no clipping.

    Returns:
        `grad_norm` (before clipping) and `learning_rate`.

    Raises:
        InputError: the gradient's norm or the new weights would not be finite.
        EngineError: the state is another adapter's.
    """
    check_fits(weights.flat, state.momentum)
    grad, norm = clipped(gradient, params.grad_clip_norm)
    momentum = torch.lerp(state.momentum, grad, 1 - params.beta1)
    updated = weights.flat.detach().clone()
    for moved, factor in zip(
        weights.over(updated).parameters, weights.over(momentum).parameters, strict=True
    ):
        # in double precision: a rate beyond float32 must become infinite, not an error of torch
        direction = torch.stack([polar(matrix) for matrix in factor.view(-1, *factor.shape[-2:])])
        direction = direction.view_as(moved).double().mul_(params.learning_rate)
        moved.sub_(direction.to(moved.dtype))
    check_step(updated)
    weights.flat.copy_(updated)
    state.momentum, state.step = momentum, state.step + 1
    return {"grad_norm": norm, "learning_rate": params.learning_rate}


def polar(matrix: Tensor) -> Tensor:
    """Compute U V^T of the singular value decomposition U S V^T, over the values that are not zero.

    Args:
        matrix: [m, n] float32.

    Returns:
        [m, n] float32.
    """
    exact = matrix.double()
    largest = exact.abs().amax()
    if not largest > 0:
        return torch.zeros_like(matrix)
    exact = exact / largest  # so that no square underflows
    tall = exact.shape[0] > exact.shape[1]
    gram = exact.T @ exact if tall else exact @ exact.T
    values, vectors = torch.linalg.eigh(gram)
    roots = torch.where(values > _ROUNDING * values[-1], values, torch.inf).rsqrt()
    inverse_root = (vectors * roots) @ vectors.T
    found: Tensor = exact @ inverse_root if tall else inverse_root @ exact
    return found.to(matrix.dtype)
