"""What every optimiser checks: its hyperparameters, the gradient, and what a step would make.

Owns the bounds' form and the messages; the formulas are `optimizers`' and `dimuon`'s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from tinkex.errors import EngineError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tinkex.types import OptimParams


def check_bounds(
    argument: str, params: OptimParams, bounds: Mapping[str, tuple[float, float]]
) -> None:
    """Check that each hyperparameter is finite and in its bounds [low, high).

    Raises:
        InputError: naming every value out of range.
    """
    faults = [
        f"{name} must be in [{low:g}, {high:g}), got {value}"
        for name, (low, high) in bounds.items()
        if not (math.isfinite(value := float(getattr(params, name))) and low <= value < high)
    ]
    if faults:
        raise InputError(f"{argument}: " + "; ".join(faults))


def check_fits(weights: Tensor, moment: Tensor) -> None:
    """Check that an optimiser's moment is of these weights.

    Raises:
        EngineError: it is another adapter's.
    """
    if weights.shape != moment.shape:
        raise EngineError("optimiser state does not fit the adapter")


def clipped(gradient: Tensor, limit: float) -> tuple[Tensor, float]:
    """Scale a gradient [P] down to the global norm `limit`; 0 or less is no limit.

    Returns:
        The gradient (itself where nothing is to be done), and its norm before.

    Raises:
        InputError: the norm is not finite.
    """
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if not math.isfinite(norm):
        raise InputError(
            "the accumulated gradient is not finite; it was discarded, weights are unchanged. "
            "Lower the weights or advantages"
        )
    return (gradient * (limit / norm) if 0 < limit < norm else gradient), norm


def check_step(*made: Tensor) -> None:
    """Check what a step would make, before it is taken.

    Raises:
        InputError: some of it is not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in made):
        raise InputError(
            "the step would make weights infinite or NaN; it was not taken and the gradient was "
            "discarded. Lower learning_rate, or set grad_clip_norm"
        )
