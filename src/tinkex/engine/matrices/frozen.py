"""What every form of a frozen weight matrix can do, and the one autograd node of their products.

The forms are `matrix`'s (torch's own, or packed for oneDNN in float32), `half`'s (float16, nothing
rounded) and `quantized`'s (int8); `layout` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Size


_WORTH = 2**18
"""Weights from which a product of fewer rows saves more than filling its result up costs."""


class FrozenMatrix(ABC):
    """One frozen matrix W [out, in] and its bias [out], if any.

    Args:
        shape: of W.
        dtype: in which W is given by `dense`, and products are.
        bias: added to every row.
    """

    steady_from = 4
    """Rows from which up the bits of one do not tell how many go with it."""

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

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """Compute to + x W^T + bias: [N, in], [N, out] -> [N, out]. Differentiable by both."""
        return to + self.rows_times(x)

    def live_rows(self, x: Tensor, live: int | None, to: Tensor | None = None) -> Tensor:
        """Compute the same, with or without `to`, where only the first `live` rows count.

        Adapters' factors may need the filler behind them (`EngineConfig.row_multiple`) where this
        matrix does not: its own product then leaves it out.

        Returns:
            [N, out]; rows of filler are any finite numbers.
        """
        count = x.shape[0]
        if live is None or live == count or self.steady_from > 1 or self.shape.numel() < _WORTH:
            return self.rows_times(x) if to is None else self.added(x, to)
        x = x[:live]
        out = self.rows_times(x) if to is None else self.added(x, to[:live])
        return F.pad(out, (0, 0, 0, count - live))


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
