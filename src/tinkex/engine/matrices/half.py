"""Frozen weight matrices in float16 from which nothing is rounded away, for float32 products.

The weights of nearly every published model are bfloat16, with 8 significant bits, or float16, with
11. Either lies in float16 unchanged once the matrix is scaled by a power of two that takes its
largest weight just below float16's limit. So a matrix is kept in half of float32's memory, and a
product widens each weight in the processor's registers and adds in float32: the same model as in
float32, read twice as fast. A decode step, which waits for its weights, gains most
(`benchmarks/weights.py`).

What is far smaller than the largest weight is the exception: float16's smallest numbers lie 2^-24
apart, so a weight may be off by 2^-39 of the matrix's largest one, where float32's own sum of the
products rounds by 2^-24.

The kernel is FBGEMM's, by torch's operator for it (x86 with AVX2). A row's bits do not depend on
how many rows go with it. Owns the scale, what fits, and the products of one matrix.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tinkex.engine.matrices.frozen import FrozenMatrix

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOP_EXPONENT = 15
"""The largest weight, scaled, is below 2 to this power; float16 ends at 2^16."""
_HIGHEST_EXPONENT = 100
"""A scale beyond would leave float32's own range."""
_NORMAL = 2.0**-14
"""From here up float16 has all its 11 bits."""
_BLOCK_ELEMENTS = 2**22
"""Weights that are looked at at once."""
_TOLERANCE = 1e-5
_EXACT_DTYPES = frozenset({torch.bfloat16, torch.float16})


def fits_half(weight: Tensor) -> bool:
    """Whether `HalfMatrix` would keep W [out, in], or each of W [..., out, in], as it is.

    "As it is" but for what is far smaller than its largest (see the module's docstring).
    """
    if weight.dim() > 2:
        return all(fits_half(one) for one in weight)
    if weight.numel() == 0:
        return False
    largest = _largest(weight)
    if not math.isfinite(largest) or _exponent(largest) > _HIGHEST_EXPONENT:
        return False
    if weight.dtype in _EXACT_DTYPES:
        return True
    scale = 2.0 ** _exponent(largest)
    return all(_is_kept(block.float() * scale) for block in _blocks(weight))


class HalfMatrix(FrozenMatrix):
    """One frozen matrix W [out, in] in float16 that `fits_half`, its bias [out] in float32, if any.

    Args:
        weight: W, of any floating dtype; not kept.
        bias: added to every row.
    """

    steady_from = 1

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight.shape, torch.float32, None if bias is None else bias.float())
        exponent = _exponent(_largest(weight))
        self._scale = 2.0**-exponent
        """What brings a product with the kept weights back to W's."""
        self._factor = torch.tensor(self._scale)
        """The same as a tensor: a number would be made one at every product."""
        self._packed = _pack(weight.to(torch.float32, copy=True).mul_(2.0**exponent))
        self._transposed: Any = None

    def dense(self) -> Tensor:
        """Give W [out, in] float32, a copy."""
        return _unpack(self._packed).mul_(self._scale)

    def times(self, g: Tensor) -> Tensor:
        """Compute g W: [N, out] -> [N, in], the gradient of `rows_times` by its input.

        The transposed matrix is packed when it is first used: sampling alone never does.
        """
        if self._transposed is None:
            self._transposed = _pack(_unpack(self._packed).t().contiguous())
        return _product(g, self._transposed).mul_(self._factor)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """Compute to + x W^T + bias; the scale and the sum in one pass."""
        if self.bias is not None or (torch.is_grad_enabled() and x.requires_grad):
            return super().added(x, to)
        return torch.add(to, _product(x, self._packed), alpha=self._scale)

    def _forward(self, x: Tensor) -> Tensor:
        found = _product(x, self._packed)
        if self.bias is None:
            return found.mul_(self._factor)
        return torch.add(self.bias, found, alpha=self._scale)


def _largest(weight: Tensor) -> float:
    low, high = torch.aminmax(weight)
    return float(torch.maximum(-low, high))


def _exponent(largest: float) -> int:
    """Give the power of two that takes a largest weight into [2^14, 2^15)."""
    return _TOP_EXPONENT - math.frexp(largest)[1] if largest else 0


def _is_kept(scaled: Tensor) -> bool:
    """Whether float16 changes nothing but what is below its normal numbers."""
    changed = scaled.half().float() != scaled
    return not bool((changed & (scaled.abs() >= _NORMAL)).any())


def _blocks(weight: Tensor) -> Iterator[Tensor]:
    step = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), step):
        yield weight[start : start + step]


@torch.no_grad()
def _pack(weight: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), None)


def _unpack(packed: Any) -> Tensor:
    weight: Tensor = torch.ops.quantized.linear_unpack_fp16(packed)[0]
    return weight


def _product(x: Tensor, packed: Any) -> Tensor:
    # "dynamic" in its name is of its siblings in int8: this one rounds no activation.
    found: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, packed)
    return found


@cache
def can_multiply_half() -> bool:
    """Whether this processor and this build of torch have the product, and it is right.

    Tried on a small matrix, as torch has no name for what it can do there.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=generator).bfloat16()
    x = torch.randn(8, 40, generator=generator)
    try:
        one = HalfMatrix(weight)
        found, dense = one.rows_times(x), one.dense()
    except (AttributeError, RuntimeError, TypeError):
        return False
    close = torch.allclose(found, x @ weight.float().t(), rtol=_TOLERANCE, atol=_TOLERANCE)
    return close and torch.equal(dense, weight.float())
