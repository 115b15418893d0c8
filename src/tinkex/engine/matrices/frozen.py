"""What every form of a frozen weight matrix can do, and the one autograd node of their products.

The forms are `matrix`'s (torch's own, or packed for oneDNN in float32), `half`'s (float16, nothing
rounded) and `quantized`'s (int8); `layout` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import Size


class FrozenMatrix(ABC):
    """One frozen matrix W [out, in] and its bias [out], if any.

    Args:
        shape: of W.
        dtype: in which W is given by `dense`, and products are.
        bias: added to every row.
    """

    def __init__(self, shape: Size, dtype: torch.dtype, bias: Tensor | None) -> None:
        self.shape = shape
        self.dtype = dtype
        self.bias = bias

    @abstractmethod
    def dense(self) -> Tensor:
        """Give W [out, in]; a copy where it is kept in another form."""

    @abstractmethod
    def times(self, g: Tensor) -> Tensor:
        """Compute g W: [N, out] -> [N, in], the gradient of `rows_times` by its input."""

    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor:
        """Compute x W^T + bias: [N, in] -> [N, out], without a gradient."""

    def rows_times(self, x: Tensor) -> Tensor:
        """Compute x W^T + bias: [N, in] -> [N, out]. Differentiable by x."""
        if x.requires_grad and torch.is_grad_enabled():
            found: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
            return found
        return self._forward(x)


class _Product(torch.autograd.Function):
    """The product with W, whose backward is the one with its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: FrozenMatrix) -> Tensor:
        """See `FrozenMatrix.rows_times`."""
        ctx.matrix = matrix
        return matrix._forward(x)  # noqa: SLF001 - of this module

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """See `FrozenMatrix.times`."""
        return ctx.matrix.times(gradients[0].contiguous()), None
