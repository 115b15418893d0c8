"""Products of small dense float32 matrices, by the faster of the two libraries that torch has.

LoRA's factors change at every step, so they are not packed (`matrix` packs the frozen ones). From
about two million multiplications up oneDNN takes half of MKL's time on processors whose maker is
not MKL's; below, its start (10 us) costs more than it saves. docs/log.md has the figures.

A row of a product has the same bits whatever the number of rows, from four up, within one library;
so a choice may depend on a caller's own rows, never on how many others share the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORTH = 2_000_000
"""Multiplications from which oneDNN is faster."""


class Products:
    """Products x W^T of plain matrices.

    Args:
        onednn: whether large ones go to oneDNN; only for float32 on a CPU (`matrix.can_pack`).
    """

    def __init__(self, *, onednn: bool) -> None:
        self._onednn = onednn

    def rows(self, x: Tensor, w: Tensor) -> Tensor:
        """Compute x W^T: [n, k], [m, k] -> [n, m], by the library that is faster for this size.

        The bits of a row may tell the number of rows. No gradients.
        """
        if self.small(x.shape[0], w.shape[0], x.shape[1]):
            return torch.mm(x, w.t())
        return self.steady(x, w)

    @staticmethod
    def small(n: int, m: int, k: int) -> bool:
        """Whether a product of so many multiplications is one for torch's own call."""
        return n * m * k < _WORTH

    def steady(self, x: Tensor, w: Tensor) -> Tensor:
        """Compute the same by one library: a row's bits do not tell the number of rows (4 up)."""
        # What is neither laid out by rows nor by columns would fall to a reference kernel.
        if self._onednn and (w.is_contiguous() or w.t().is_contiguous()):
            found: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - torch's only name
                x, w, None, "none", [], ""
            )
            return found
        return torch.mm(x, w.t())
