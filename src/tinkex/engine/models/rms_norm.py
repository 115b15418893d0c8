"""The root mean square norm (Zhang & Sennrich 2019, arXiv 1910.07467), in few operators.

On a CPU a decode step of a small model spends more on the operators' own start than on their
numbers: `torch.nn.functional.rms_norm` is over a dozen there (`benchmarks/engine.py norm`). The
length of a row is one operator, with the same bits whatever the number of rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class RmsNorm:
    """Divides rows by their root mean square: y = w x / sqrt(mean(x^2) + eps).

    In float32 whatever the dtype, as transformers does. Computed as y = (w sqrt(d)) (x / h), where
    h = sqrt(|x|^2 + eps d) is one operator more than the length |x| itself.

    Args:
        weight: w [..., d], broadcast over rows; in the dtype of the rows. Not differentiated.
        eps: Added to the mean square.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        width = weight.shape[-1]
        self._eps = eps
        self._weight = weight.detach().clone()
        self._scaled = self._weight.float() * math.sqrt(width)
        self._least = torch.tensor(math.sqrt(eps * width), device=weight.device)
        """h of a row of zeros."""
        self._fused = weight.device.type != "cpu"
        """Whether torch's own is one kernel there."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise rows [..., d] and scale them. Differentiable by x."""
        if x.requires_grad and torch.is_grad_enabled():
            found: Tensor = _Differentiable.apply(x, self)  # type: ignore[no-untyped-call]
            return found
        if self._fused:
            plain = F.rms_norm(x.float(), x.shape[-1:], None, self._eps)
            return plain.to(x.dtype) * self._weight
        full = x.float()
        return self.scale(full / self.length(full), x.dtype)

    def length(self, x: Tensor) -> Tensor:
        """Give h of float32 rows [..., d]: [..., 1]."""
        found: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return found.hypot_(self._least)

    def scale(self, unit: Tensor, dtype: torch.dtype) -> Tensor:
        """Give y, in a dtype, of x / h."""
        if dtype == torch.float32:
            return unit * self._scaled
        return (unit * math.sqrt(unit.shape[-1])).to(dtype) * self._weight

    def backward(self, unit: Tensor, length: Tensor, gradient: Tensor) -> Tensor:
        """Give dL/dx, in float32, of x / h, h and dL/dy."""
        # y = v u, u = x / h: dL/dx = (v g - u sum(v g u)) / h
        g = gradient.float() * self._scaled
        total = (g * unit).sum(-1, keepdim=True)
        return g.addcmul_(unit, total, value=-1).div_(length)


class _Differentiable(torch.autograd.Function):
    """The norm with a backward of few passes; autograd's own takes four times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: RmsNorm) -> Tensor:
        full = x.float()
        length = norm.length(full)
        unit = full / length
        ctx.norm = norm
        ctx.save_for_backward(unit, length)
        return norm.scale(unit, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unit, length = ctx.saved_tensors
        found: Tensor = ctx.norm.backward(unit, length, gradients[0])
        return found.to(gradients[0].dtype), None
