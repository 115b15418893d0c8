"""Products of float32 rows with an int8 matrix, exact in the integers and fast on a CPU.

A CPU with int8 dot products (AVX-512 VNNI, AVX-VNNI, AMX) multiplies bytes four times as fast as
float32, and int8 weights are a quarter of the bytes to read. Quantising the rows to one byte as
well would cost accuracy; instead each row is written as a fixed-point number of three bytes,

    x = (top / limit) * (d2 * 65536 + d1 * 256 + d0),   each d in -128..127, top = max |x|,

which keeps as many bits as float32 has for the row's largest value, and each digit is multiplied
by itself in whole numbers. (The splitting is Ozaki's idea, Ozaki et al. 2012, Numerical Algorithms
59, with bytes for the parts.) Sums of whole numbers do not depend on their order, so a row has the
same bits in any company, with any number of rows and of threads.

Owns the digits and the product; what the numbers of the matrix mean is `quantized`'s matter.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_ZERO = 128
"""What stands for the digit 0 in an unsigned byte: oneDNN is fast with unsigned rows only."""
_LIMITS = {3: 8_355_000.0, 4: 2_139_000_000.0}
"""By number of digits: the fixed-point number of a row's largest value. A little below the largest
that there is, so that no rounding passes it."""
_OFFSETS = {3: 0x808080, 4: 0x80808080 - 2**32}
"""128 in each byte, as a signed number."""
_WIDE = 16_384
"""Rows wider than this get four digits. They are gradients of logits: thousands of probabilities,
each far below the largest, that together count."""
_MAX_WIDTH = 65_536
"""Columns of one integer product: 65,536 x 255 x 127 is below 2^31."""
_SMALLEST = 1e-30
"""A row whose largest value is below this counts as that large, so that its inverse is finite."""
_SPLIT_ELEMENTS = 2**18
"""Split at once; what lies between stays in the cache."""
_BLOCK_ELEMENTS = 2**22
"""Of the rows in one product: the digits are as many bytes three or four times."""
_STACKED_ELEMENTS = 2**20
"""Outputs up to which the digits go through one product, and are summed afterwards."""
_FEW_ELEMENTS = 2**14
"""Elements up to which the bytes of the fixed-point numbers are gathered in one operation."""


class Int8Product:
    """x -> ((x * inputs) Q^T) * scales, with Q laid out for oneDNN.

    Args:
        values: Q [out, in] int8; not kept.
        scales: [out] float32.
        inputs: [in] float32; ones when absent.
    """

    def __init__(self, values: Tensor, scales: Tensor, inputs: Tensor | None = None) -> None:
        out, width = values.shape
        self._scales = scales
        self._inputs = inputs
        self._zeros = torch.zeros(out, dtype=torch.int32)
        self._digits = 4 if width > _WIDE else 3
        starts = range(0, width, _MAX_WIDTH)
        self._columns = [slice(start, min(start + _MAX_WIDTH, width)) for start in starts]
        self._parts = [_pack(values[:, at]) for at in self._columns]

    def values(self) -> Tensor:
        """Give Q [out, in] int8, a copy."""
        return torch.cat([part.to_dense() for part in self._parts]).t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """Compute ((x * inputs) Q^T) * scales: [N, in] -> [N, out] float32, without a gradient.

        A row with a value that is not finite has no finite results.
        """
        rows, width = x.shape
        step = max(1, _BLOCK_ELEMENTS // width)
        if 0 < rows <= step:
            return self._multiply(x)
        found = x.new_empty(rows, self._scales.shape[0])
        for start in range(0, rows, step):
            found[start : start + step] = self._multiply(x[start : start + step])
        return found

    def _multiply(self, x: Tensor) -> Tensor:
        digits, unit = _split(x, self._digits, self._inputs)
        if len(self._parts) == 1:
            return self._sum(digits, self._parts[0]).mul_(unit)
        total = torch.zeros(x.shape[0], self._scales.shape[0])
        for at, part in zip(self._columns, self._parts, strict=True):
            total.add_(self._sum(digits[:, :, at].contiguous(), part))
        return total.mul_(unit)

    def _sum(self, digits: Tensor, packed: Tensor) -> Tensor:
        """Sum the digits' products, [D, N, K] -> [N, out], lowest first.

        In one product or several, the bits are the same: powers of two multiply exactly.
        """
        count, rows, width = digits.shape
        out = self._scales.shape[0]
        if rows * out > _STACKED_ELEMENTS:
            total = self._product(digits[0], packed, 1.0, None)
            for place in range(1, count):
                self._product(digits[place], packed, 256.0**place, total)
            return total
        stacked = self._product(digits.view(count * rows, width), packed, 1.0, None)
        lowest, second, *others = stacked.view(count, rows, out).unbind()
        total = torch.add(lowest, second, alpha=256)  # not in place: `stacked` is to go
        for place, other in enumerate(others, 2):
            total.add_(other, alpha=256**place)
        return total

    def _product(self, digits: Tensor, packed: Tensor, scale: float, onto: Tensor | None) -> Tensor:
        """Multiply the digits [n, K], scale, and add to `onto` in place if it is given."""
        rows = (digits, scale, _ZERO, packed, self._scales, self._zeros)
        last = (None, 1.0, 0, torch.float32)
        plain: tuple[str, list[float], str] = ("none", [], "")
        operator: Any = torch.ops.onednn.qlinear_pointwise
        found: Tensor
        if onto is None:
            found = operator.default(*rows, *last, *plain)
        else:
            found = operator.binary(*rows, onto, *last, 1.0, 0, "sum", 1.0, *plain)
        return found


def _pack(values: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(values.contiguous(), None)
    return packed


def _split(x: Tensor, count: int, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Write rows x * inputs [N, K] as fixed-point numbers of `count` bytes.

    Returns:
        Digits [count, N, K] uint8, lowest first, each plus 128; what one unit is worth [N, 1].
    """
    rows, width = x.shape
    if x.numel() <= _FEW_ELEMENTS:
        fixed, top = _fixed_point(x, count, inputs)
        digits = fixed.view(torch.uint8).view(rows * width, 4).t()[:count].contiguous()
        return digits.view(count, rows, width), top.div_(_LIMITS[count])
    digits = torch.empty(count, rows, width, dtype=torch.uint8)
    tops = []
    step = max(1, _SPLIT_ELEMENTS // width)
    for start in range(0, rows, step):
        at = slice(start, start + step)
        fixed, top = _fixed_point(x[at], count, inputs)
        tops.append(top)
        for place in range(count):
            digits[place, at].copy_(fixed)  # the lowest byte alone
            fixed.__irshift__(8)
    return digits, torch.cat(tops).div_(_LIMITS[count])


def _fixed_point(x: Tensor, count: int, inputs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round rows to whole numbers [N, K] int32, 128 added to each byte; and give each row's top."""
    if inputs is not None:
        x = x * inputs
    top = x.abs().amax(1, keepdim=True).clamp_min_(_SMALLEST)
    return (x * (_LIMITS[count] / top)).round_().to(torch.int32).add_(_OFFSETS[count]), top


@cache
def can_multiply_int8() -> bool:
    """Whether this build of torch and this processor multiply int8 exactly.

    The operators are torch's own, but not public; and processors without int8 dot products add
    pairs in 16 bits, which overflow. So small products are tried, of the largest values too.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        for values in (
            torch.randint(-127, 128, (64, 320), generator=generator, dtype=torch.int8),
            torch.full((64, 320), 127, dtype=torch.int8),
            torch.full((64, 320), -127, dtype=torch.int8),
        ):
            if not _is_exact(values, generator):
                return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def _is_exact(values: Tensor, generator: torch.Generator) -> bool:
    product = Int8Product(values, torch.rand(values.shape[0], generator=generator))
    packed = product._parts[0]  # noqa: SLF001 - of this module
    for rows in (1, 6, 40):
        digits = torch.randint(0, 256, (rows, values.shape[1]), generator=generator)
        for digit in (digits, torch.full_like(digits, 255), torch.zeros_like(digits)):
            unsigned = digit.to(torch.uint8)
            whole = (digit - _ZERO) @ values.long().t()
            exact = whole.float() * product._scales  # noqa: SLF001
            found = product._product(unsigned, packed, 1.0, None)  # noqa: SLF001
            if not torch.equal(found, exact):
                return False
            product._product(unsigned, packed, 256.0, found)  # noqa: SLF001
            if not torch.equal(found, exact + exact * 256):
                return False
    return torch.equal(product.values(), values)
