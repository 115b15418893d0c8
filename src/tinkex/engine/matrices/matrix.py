"""Frozen weight matrices in the dtype of their products, laid out for the fastest that torch has.

On a CPU in float32 a matrix is packed once for oneDNN's kernels and the plain copy is dropped: a
product then reads each weight once and re-orders nothing, where a plain one packs the weights anew
each time. (Measured on one thread of an AMD EPYC with AVX-512, against torch's own product through
MKL: twice as fast at 512 rows, two to three times at 4; docs/log.md has the figures.) The
transposed matrix, which the backward pass needs, is packed when it is first used: sampling alone
never does.

A row's bits do not depend on how many rows go with it, from four up (`EngineConfig.row_multiple`).
Owns the products y = x W^T and x = g W of one matrix; knows no adapter.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.device import memory_bytes
from tinkex.engine.matrices.frozen import FrozenMatrix

_PACKED_FOR_ROWS = 4
"""Rows that the layout is chosen for; it serves any number."""
_TOLERANCE = 1e-4
_SMALL_BYTES = 2**30
"""A model that is packed even where the size of the memory is not known."""


class Matrix(FrozenMatrix):
    """One frozen matrix W [out, in] and its bias [out], if any.

    Args:
        weight: W; not kept when `packed`.
        bias: added to every row.
        packed: whether to lay it out for oneDNN; only for float32 on a CPU (`can_pack`).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, packed: bool) -> None:
        super().__init__(weight.shape, weight.dtype, bias)
        self._packed = _pack(weight) if packed else None
        self._transposed: Tensor | None = None
        self._dense = None if packed else weight

    def dense(self) -> Tensor:
        """Give W [out, in]; a copy when it is packed."""
        if self._packed is not None:
            plain: Tensor = self._packed.to_dense()
            return plain
        assert self._dense is not None
        return self._dense

    def rows_times(self, x: Tensor) -> Tensor:
        """Compute x W^T + bias: [N, in] -> [N, out]. Differentiable by x."""
        if self._packed is None:
            return F.linear(x, self.dense(), self.bias)
        return super().rows_times(x)

    def times(self, g: Tensor) -> Tensor:
        """Compute g W: [N, out] -> [N, in], the gradient of `rows_times` by its input."""
        if self._packed is None:
            return g @ self.dense()
        if self._transposed is None:
            self._transposed = _pack(self.dense().t().contiguous())
        return _product(g, self._transposed, None)

    def _forward(self, x: Tensor) -> Tensor:
        assert self._packed is not None  # else it is torch's own product
        return _product(x, self._packed, self.bias)


@torch.no_grad()
def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001 - torch's only name for it
        weight.detach().contiguous(), _PACKED_FOR_ROWS
    )
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - as above
        x, packed, bias, "none", [], ""
    )
    return found


@cache
def can_pack() -> bool:
    """Whether this build of torch has the packed product, and it is right.

    The operators are torch's own, but not public: they are tried on a small product before they
    are relied on.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=generator)
    x = torch.randn(8, 40, generator=generator)
    try:
        found = _product(x, _pack(weight), None)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, x @ weight.t(), rtol=_TOLERANCE, atol=_TOLERANCE)


def room_to_pack(weight_bytes: int) -> bool:
    """Whether a model with so many bytes of weights may be packed on this machine.

    Training then holds it two and a half times (measured on 110 million parameters); that must
    leave half of the machine's memory to everything else.
    """
    memory = memory_bytes(torch.device("cpu"))
    if memory is None:
        return weight_bytes < _SMALL_BYTES
    return 2.5 * weight_bytes < 0.5 * memory
