"""LoRA in training: the product of layers that read the same input, and its backward.

One autograd node covers a frozen matrix and the factors of every run in the batch. Its backward
adds the gradients of the factors to each run's own buffer (`LoraSegment.gradient`) instead of
handing them to autograd: no temporaries as large as the factors, and no graph for each of them.

A run with many rows has products of its own, by the faster library (`products`). Small ones that
lie side by side, with as many rows and the same rank, share batched products, which have the bits
of each alone (`batches_are_neutral`). Which form it is depends on a run's own rows, so no bit of
its gradient tells what else is in the batch.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.lora.weights import LoraGroup, LoraSegment
    from tinkex.engine.matrices.frozen import FrozenMatrix
    from tinkex.engine.matrices.products import Products

_FEW_ROWS = 64
"""Rows of a run up to which its products are batched with others'."""


def training_product(
    x: Tensor,
    anchor: Tensor,
    matrix: FrozenMatrix,
    group: LoraGroup,
    segments: Sequence[LoraSegment],
    products: Products,
) -> Tensor:
    """Compute the layers of `group`, with the LoRA of each segment. Differentiable by `x`.

    Args:
        x: [N, in], the batch's rows.
        anchor: Any tensor that requires a gradient: it ties the node into the graph where `x` does
            not require one (the first layer's).
        matrix: The frozen matrices of the group, one below the other.
        group: The layers.
        segments: Rows by adapter.
        products: For the factors.

    Returns:
        [N, out], in the dtype of the matrix.
    """
    present = [s for s in segments if any(name in s.weights.pairs for name in group.names)]
    if not present:
        return matrix.rows_times(x)
    out: Tensor = _TrainingProduct.apply(x, anchor, matrix, group, present, products)  # type: ignore[no-untyped-call]
    return out


class _TrainingProduct(torch.autograd.Function):
    """See `training_product`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor,
        matrix: FrozenMatrix,
        group: LoraGroup,
        segments: Sequence[LoraSegment],
        products: Products,
    ) -> Tensor:
        out = matrix.rows_times(x)
        parts: list[_Run | _Batch] = []
        for batch in _batches(segments, group):
            few = batch[0].end - batch[0].start <= _FEW_ROWS
            parts.append(_Batch(batch, group) if few else _Run(batch[0], group, products))
            parts[-1].forward(x, out)
        ctx.save_for_backward(x)
        ctx.matrix, ctx.parts = matrix, parts
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        g = gradients[0].contiguous()
        dx = ctx.matrix.times(g) if ctx.needs_input_grad[0] else None
        for part in ctx.parts:
            part.backward(x, g, dx)
        return dx, None, None, None, None, None


def _batches(segments: Sequence[LoraSegment], group: LoraGroup) -> list[list[LoraSegment]]:
    """Put small neighbours together that have as many rows, the same rank and the same layers."""
    batches: list[list[LoraSegment]] = []
    for one in segments:
        last = batches[-1][-1] if batches else None
        count = one.end - one.start
        if (
            last is not None
            and count <= _FEW_ROWS
            and last.end == one.start
            and last.end - last.start == count
            and last.weights.rank == one.weights.rank
            and last.weights.scale == one.weights.scale
            and (last.gradient is None) == (one.gradient is None)
            and group.names_of(last.weights) == group.names_of(one.weights)
            and batches_are_neutral()
        ):
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


class _Run:
    """The factors of one run with many rows."""

    def __init__(self, segment: LoraSegment, group: LoraGroup, products: Products) -> None:
        self._segment = segment
        self._names = group.names_of(segment.weights)
        self._columns = [group.columns[name] for name in self._names]
        self._products = products
        self._at = slice(segment.start, segment.end)
        pairs = [segment.weights.pairs[name].wide for name in self._names]
        self._rank = pairs[0].a.shape[0]
        self._a = pairs[0].a if len(pairs) == 1 else torch.cat([pair.a for pair in pairs])
        """[m * r, in]: A of the m layers, one below the other."""
        self._b = [pair.b for pair in pairs]
        self._inner: Tensor

    def forward(self, x: Tensor, out: Tensor) -> None:
        """Add scale * x A^T B^T to the run's rows of `out` [N, out]."""
        weights = self._segment.weights
        self._inner = self._products.rows(x[self._at].to(self._a.dtype), self._a)
        for place, columns in enumerate(self._columns):
            into, b = out[self._at, columns], self._b[place]
            if into.dtype == b.dtype:
                into.addmm_(self._part(self._inner, place), b.t(), alpha=weights.scale)
            else:  # the factors stay float32 whatever the base model's dtype
                delta = torch.mm(self._part(self._inner, place), b.t())
                into.add_(delta.mul_(weights.scale).to(into.dtype))

    def backward(self, x: Tensor, g: Tensor, dx: Tensor | None) -> None:
        """Add to the run's gradient buffer, and to its rows of `dx` [N, in], given `g` [N, out]."""
        weights, gradient = self._segment.weights, self._segment.gradient
        products = self._products
        d_inner = torch.empty_like(self._inner)
        for place, (name, columns) in enumerate(zip(self._names, self._columns, strict=True)):
            slope = g[self._at, columns].to(d_inner.dtype)
            self._part(d_inner, place).copy_(products.rows(slope, self._b[place].t()))
            if gradient is not None:
                # The short side first, at the price of a copy: twice as fast.
                inner = self._part(self._inner, place).t().contiguous()
                d_b = products.rows(inner, slope.t())
                gradient.pairs[name].b.add_(d_b[: weights.rank].t(), alpha=weights.scale)
        d_inner.mul_(weights.scale)
        if gradient is not None:
            d_a = products.rows(d_inner.t(), x[self._at].to(d_inner.dtype).t())
            for place, name in enumerate(self._names):
                start = place * self._rank
                gradient.pairs[name].a.add_(d_a[start : start + weights.rank])
        if dx is not None:
            dx[self._at] += products.rows(d_inner, self._a.t()).to(dx.dtype)

    def _part(self, inner: Tensor, place: int) -> Tensor:
        """Give one layer's columns of [n, m * r]."""
        return inner[:, place * self._rank : (place + 1) * self._rank]


class _Batch:
    """The factors of small runs side by side, each with n rows: products batched over the runs."""

    def __init__(self, segments: Sequence[LoraSegment], group: LoraGroup) -> None:
        self._segments = segments
        weights = [one.weights for one in segments]
        self._scale = weights[0].scale
        self._names = group.names_of(weights[0])
        self._columns = [group.columns[name] for name in self._names]
        self._at = slice(segments[0].start, segments[-1].end)
        pairs = [[one.pairs[name].wide for name in self._names] for one in weights]
        self._rank = pairs[0][0].a.shape[0]
        a = torch.cat([pair.a for own in pairs for pair in own])
        self._a = a.view(len(segments), -1, a.shape[1])
        """[runs, m * r, in]: A of the m layers, one below the other."""
        self._b = [torch.stack([pair.b for pair in of]) for of in zip(*pairs, strict=True)]
        """Of each layer [runs, out, r]."""
        self._inner: Tensor

    def _by_run(self, rows: Tensor) -> Tensor:
        """Give [N, k], the whole batch's, as [runs, n, k] of these runs."""
        return rows[self._at].view(len(self._segments), -1, rows.shape[1])

    def forward(self, x: Tensor, out: Tensor) -> None:
        """Add scale * x A^T B^T to the runs' rows of `out` [N, out]."""
        self._inner = torch.bmm(self._by_run(x).to(self._a.dtype), self._a.transpose(1, 2))
        into = self._by_run(out)
        for place, (b, columns) in enumerate(zip(self._b, self._columns, strict=True)):
            delta = torch.bmm(self._part(self._inner, place), b.transpose(1, 2))
            into[..., columns].add_(delta.mul_(self._scale).to(out.dtype))

    def backward(self, x: Tensor, g: Tensor, dx: Tensor | None) -> None:
        """Add to the runs' gradient buffers, and to their rows of `dx` [N, in], given `g`."""
        slopes = self._by_run(g).to(self._inner.dtype)
        d_inner = torch.empty_like(self._inner)
        for place, (b, columns) in enumerate(zip(self._b, self._columns, strict=True)):
            slope = slopes[..., columns]
            self._part(d_inner, place).copy_(torch.bmm(slope, b))
            d_b = torch.bmm(slope.transpose(1, 2), self._part(self._inner, place))
            for one, found in zip(self._segments, d_b, strict=True):
                if one.gradient is not None:
                    own = found[:, : one.weights.rank]
                    one.gradient.pairs[self._names[place]].b.add_(own, alpha=self._scale)
        d_inner.mul_(self._scale)
        d_a = torch.bmm(d_inner.transpose(1, 2), self._by_run(x).to(d_inner.dtype))
        for one, found in zip(self._segments, d_a, strict=True):
            if one.gradient is not None:
                for name, part in zip(self._names, found.split(self._rank), strict=True):
                    one.gradient.pairs[name].a.add_(part[: one.weights.rank])
        if dx is not None:
            self._by_run(dx).add_(torch.bmm(d_inner, self._a).to(dx.dtype))

    def _part(self, inner: Tensor, place: int) -> Tensor:
        """Give one layer's columns of [runs, n, m * r]."""
        return inner[..., place * self._rank : (place + 1) * self._rank]


@cache
def batches_are_neutral() -> bool:
    """Whether a batched product gives each of its parts the bits that it has alone.

    Tried on random factors, as in `lora.stack.slots_are_neutral`.
    """
    generator = torch.Generator().manual_seed(0)
    for rows, width, rank in ((4, 64, 8), (32, 256, 16), (64, 200, 48)):
        x = torch.randn(5, rows, width, generator=generator)
        a = torch.randn(5, rank, width, generator=generator)
        inner = torch.bmm(x, a.transpose(1, 2))
        outer = torch.bmm(inner.transpose(1, 2), x)
        for i in range(5):
            alone = torch.bmm(x[i : i + 1], a[i : i + 1].transpose(1, 2))
            if not torch.equal(alone[0], inner[i]):
                return False
            if not torch.equal(torch.bmm(alone.transpose(1, 2), x[i : i + 1])[0], outer[i]):
                return False
    return True
