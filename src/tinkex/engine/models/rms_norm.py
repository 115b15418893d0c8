"""The root mean square norm (Zhang & Sennrich 2019, arXiv 1910.07467), in few operators.

On a CPU a decode step of a small model spends more on the operators' own start than on their
numbers: `torch.nn.functional.rms_norm` is over a dozen there (`benchmarks/engine.py norm`). The
length of a row is one operator, with the same bits whatever the number of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class RmsNorm:
    """Divides rows by their root mean square: y = w x / sqrt(mean(x^2) + eps).

    In float32 whatever the dtype, as transformers does.

    Args:
        eps: Added to the mean square.
        device: Where the rows lie.
    """

    def __init__(self, eps: float, device: torch.device) -> None:
        self._eps = eps
        self._added = torch.tensor(eps, device=device)
        self._fused = device.type != "cpu"
        """Whether torch's own is one kernel there."""

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Normalise rows [..., d] and scale them by `weight`, broadcast over rows.

        Differentiable by x alone.
        """
        if x.requires_grad and torch.is_grad_enabled():
            found: Tensor = _Differentiable.apply(x, weight, self._added)  # type: ignore[no-untyped-call]
            return found
        if self._fused:
            return F.rms_norm(x.float(), x.shape[-1:], None, self._eps).to(x.dtype) * weight
        full = x.float()
        return (full * _inverse(full, self._added)).to(x.dtype) * weight


def _inverse(x: Tensor, eps: Tensor) -> Tensor:
    """Give 1 / rms of float32 rows [..., d]: [..., 1]."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(eps, length, length, value=1 / x.shape[-1]).rsqrt_()


class _Differentiable(torch.autograd.Function):
    """The norm with a backward of few passes; autograd's own takes four times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
        full = x.float()
        inverse = _inverse(full, eps)
        normed = full * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed.to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        normed, inverse, weight = ctx.saved_tensors
        # y = w n, n = x / rms: dL/dx = (w g - n mean(w g n)) / rms
        g = gradients[0].float() * weight
        mean = (g * normed).mean(-1, keepdim=True)
        return g.addcmul_(normed, mean, value=-1).mul_(inverse).to(gradients[0].dtype), None, None
