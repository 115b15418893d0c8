"""The layers of a model with the LoRA of each row's adapter, and which adapter that is.

Three forms, by what a forward is for: training (`lora.training`: gradients into each run's buffer),
prefill and scores (rows grouped by adapter, a product for each group: the segments of Punica's
SGMV, arXiv 2310.18547), and decoding (`lora.stack`). A and B are never gathered row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinkex.engine.lora.stack import StackedRows
from tinkex.engine.lora.training import training_product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.lora.weights import LoraGroup, LoraSegment
    from tinkex.engine.matrices.frozen import FrozenMatrix
    from tinkex.engine.matrices.products import Products


class LoraRouting:
    """Which adapter each row of the present forward uses; shared by all layers of one model.

    The model runner enters and leaves it around each forward. Segments are disjoint, in order, and
    need not cover every row.
    """

    def __init__(self, products: Products, row_multiple: int = 1) -> None:
        self.products = products
        self.row_multiple = row_multiple
        self.entered = False
        """Whether a forward is under way."""
        self.rows: tuple[LoraSegment, ...] | StackedRows = ()
        self.anchor: Tensor | None = None
        """What the nodes of a training forward hang on; None in any other forward."""
        self.live: int | None = None
        """Rows that count, when those after them are filler."""
        self._segments: tuple[LoraSegment, ...] | None = None

    def enter(
        self, rows: tuple[LoraSegment, ...] | StackedRows, anchor: Tensor | None, live: int | None
    ) -> None:
        """Begin a forward."""
        self.entered, self.rows, self.anchor, self.live = True, rows, anchor, live

    def leave(self) -> None:
        """End it, and let go of its adapters."""
        self.entered, self.rows, self.anchor, self.live = False, (), None, None
        self._segments = None

    @property
    def segments(self) -> tuple[LoraSegment, ...]:
        """Rows by adapter, for layers that have no form of their own for a decode step."""
        if self._segments is None:
            rows = self.rows
            self._segments = rows.segments() if isinstance(rows, StackedRows) else rows
        return self._segments

    def product(
        self, x: Tensor, matrix: FrozenMatrix, group: LoraGroup, to: Tensor | None = None
    ) -> Tensor:
        """Map the batch's rows x [N, in] by the layers of `group`: [N, out], on top of `to`."""
        rows = self.rows
        if self.anchor is not None and rows and not isinstance(rows, StackedRows):
            found = training_product(x, self.anchor, matrix, group, rows, self.products)
            return found if to is None else to + found
        out = matrix.live_rows(x, self.live, to)
        if not rows:
            return out
        if isinstance(rows, StackedRows):
            rows.add(out, x, group)
        else:
            add_lora(out, x, group, rows, self.products, self.row_multiple)
        return out


class LoraLinear(nn.Module):
    """A frozen linear layer plus the LoRA of each row's adapter."""

    def __init__(self, matrix: FrozenMatrix, group: LoraGroup, routing: LoraRouting) -> None:
        super().__init__()
        self.matrix = matrix
        self._group = group
        self._routing = routing

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]; leading dimensions hold the batch's rows in order."""
        out = self._routing.product(x.reshape(-1, x.shape[-1]), self.matrix, self._group)
        return out.view(*x.shape[:-1], -1)


@torch.no_grad()
def add_lora(
    out: Tensor,
    x: Tensor,
    group: LoraGroup,
    segments: Sequence[LoraSegment],
    products: Products,
    row_multiple: int,
) -> None:
    """Add each segment's LoRA of the layers of `group` to `out`, in place, without gradients.

    Args:
        out: [N, out], the frozen layers' output.
        x: [N, in], their input.
        group: The layers.
        segments: Rows by adapter; an adapter without these layers leaves its rows alone.
        products: For the factors.
        row_multiple: Segments are computed padded to a multiple of this many rows, so that a row's
            bits do not depend on how many rows share its adapter (see `EngineConfig`).
    """
    for segment in segments:
        weights = segment.weights
        names = group.names_of(weights)
        if not names:
            continue
        at = slice(segment.start, segment.end)
        rows = x[at].to(weights.flat.dtype)
        extra = -rows.shape[0] % row_multiple
        rows = F.pad(rows, (0, 0, 0, extra)) if extra else rows
        for name in names:
            pair = weights.pairs[name].wide
            inner = products.steady(rows, pair.a).mul_(weights.scale)
            delta = products.steady(inner, pair.b)[: at.stop - at.start]
            out[at, group.columns[name]] += delta.to(out.dtype)
