"""Frozen weight matrices in int8: a quarter of the memory, each output channel with its scale.

W [out, in] is kept as whole numbers Q in -127..127 and a float32 scale for each row of W (an
output channel): W' = scales[:, None] * Q, the scale chosen so that the channel's largest weight is
127. Activations stay float32, and every product, forward and backward, is one with W', so that
training and sampling see the same model. What W' is away from W is the whole error; docs/log.md
states it.

Owns quantising and the products of one matrix; `int8_product` does the arithmetic where the
processor can, and W' is put together block by block where it cannot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.matrices.frozen import FrozenMatrix
from tinkex.engine.matrices.int8_product import Int8Product, can_multiply_int8

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 127.0
_BLOCK_ELEMENTS = 2**20
"""Weights that are float32 at once where there is no product in int8."""


@torch.no_grad()
def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round W [out, in], of any floating dtype, to int8 with a scale for each output channel.

    Returns:
        Q [out, in] int8 in -127..127, and scales [out] float32; W is about scales[:, None] * Q,
        each weight to within half its channel's scale.
    """
    scales = torch.empty(weight.shape[0])
    values = torch.empty(weight.shape, dtype=torch.int8)
    step = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        at = slice(start, start + step)
        block = weight[at].float()
        scale = block.abs().amax(1, keepdim=True).div_(_LARGEST)
        scale.masked_fill_(scale == 0, 1.0)  # a channel of zeros
        values[at] = (block / scale).round_().clamp_(-_LARGEST, _LARGEST)
        scales[at] = scale[:, 0]
    return values, scales


class QuantizedMatrix(FrozenMatrix):
    """One frozen matrix W' [out, in] in int8, and its bias [out] in float32, if any.

    Args:
        weight: W; not kept.
        bias: added to every row.
        exact: whether to multiply in int8 (`can_multiply_int8`); else in float32, block by block.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, exact: bool | None = None
    ) -> None:
        super().__init__(weight.shape, torch.float32, None if bias is None else bias.float())
        self.exact = can_multiply_int8() if exact is None else exact
        self.steady_from = 1 if self.exact else 4
        values, self._scales = quantize(weight)
        self._product: Int8Product | None = None
        self._transposed: Int8Product | None = None
        self._values: Tensor | None = values
        if self.exact:
            self._product, self._values = Int8Product(values, self._scales), None

    def values(self) -> Tensor:
        """Give Q [out, in] int8; a copy when it is laid out for products."""
        if self._product is not None:
            return self._product.values()
        assert self._values is not None
        return self._values

    def dense(self) -> Tensor:
        """Give W' [out, in] float32, a copy."""
        return self.values().float().mul_(self._scales[:, None])

    def times(self, g: Tensor) -> Tensor:
        """Compute g W': [N, out] -> [N, in], the gradient of `rows_times` by its input."""
        if self._product is None:
            total = g.new_zeros(g.shape[0], self.shape[1])
            for at, block in self._blocks():
                total.addmm_(g[:, at] * self._scales[at], block)
            return total
        if self._transposed is None:
            values = self._product.values().t().contiguous()
            self._transposed = Int8Product(values, torch.ones(self.shape[1]), self._scales)
        return self._transposed(g)

    def _forward(self, x: Tensor) -> Tensor:
        if self._product is not None:
            out = self._product(x)
        else:
            out = torch.cat([F.linear(x, block) for _, block in self._blocks()], dim=1)
            out.mul_(self._scales)
        return out if self.bias is None else out.add_(self.bias)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Give Q in float32, some output channels at a time."""
        values = self.values()
        step = max(1, _BLOCK_ELEMENTS // self.shape[1])
        for start in range(0, self.shape[0], step):
            at = slice(start, start + step)
            yield at, values[at].float()
