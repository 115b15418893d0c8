"""LoRA in training: the product of layers that read the same input, and its backward.

One autograd node covers a frozen matrix and the factors of every run in the batch. Its backward
adds the gradients of the factors to each run's own buffer (`LoraSegment.gradient`) instead of
handing them to autograd: no temporaries as large as the factors, and no graph for each of them.

The rows of a run are computed by products of its own, whose kernels depend on its own number of
rows alone; so no bit of its gradient tells what else is in the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.lora import LoraGroup, LoraSegment, LoraWeights
    from tinkex.engine.products import Products
    from tinkex.engine.weight_layout import FrozenMatrix


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
        inners = []
        for segment in segments:
            names = group.names_of(segment.weights)
            a = _stacked(segment.weights, names)
            rows = x[segment.start : segment.end].to(a.dtype)
            inner = products.rows(rows, a)
            inners.append(inner)
            scale, rank = segment.weights.scale, segment.weights.rank
            for place, name in enumerate(names):
                b = segment.weights.pairs[name].b
                into = out[segment.start : segment.end, group.columns[name]]
                part = inner[:, place * rank : (place + 1) * rank]
                _add_product(into, part, b, scale)
        ctx.save_for_backward(x, *inners)
        ctx.matrix, ctx.group, ctx.segments, ctx.products = matrix, group, segments, products
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *inners = ctx.saved_tensors
        g = gradients[0].contiguous()
        wanted = ctx.needs_input_grad[0]
        dx = ctx.matrix.times(g) if wanted else None
        for segment, inner in zip(ctx.segments, inners, strict=True):
            at = slice(segment.start, segment.end)
            d_inner, a = _segment_backward(ctx.group, segment, x[at], g[at], inner, ctx.products)
            if dx is not None:
                dx[at] += ctx.products.rows(d_inner, a.t()).to(dx.dtype)
        return dx, None, None, None, None, None


def _segment_backward(
    group: LoraGroup,
    segment: LoraSegment,
    x: Tensor,
    g: Tensor,
    inner: Tensor,
    products: Products,
) -> tuple[Tensor, Tensor]:
    """Add one segment's gradients to its buffer.

    Args:
        group: The layers.
        segment: Whose rows these are.
        x: [n, in].
        g: [n, out] the gradient of the output.
        inner: [n, m * r], x A^T of the m layers that the adapter has, unscaled.
        products: For the factors.

    Returns:
        the gradient of `inner` [n, m * r], and A of these layers [m * r, in].
    """
    weights = segment.weights
    names, rank = group.names_of(weights), weights.rank
    a = _stacked(weights, names)
    d_inner = torch.empty_like(inner)
    for place, name in enumerate(names):
        part = slice(place * rank, (place + 1) * rank)
        slope = g[:, group.columns[name]].to(inner.dtype)
        d_inner[:, part] = products.rows(slope, weights.pairs[name].b.t())
        if segment.gradient is not None:
            # Transposed: the short side first is twice as fast.
            d_b = products.rows(inner[:, part].t().contiguous(), slope.t())
            segment.gradient.pairs[name].b.add_(d_b.t(), alpha=weights.scale)
    d_inner.mul_(weights.scale)
    if segment.gradient is not None:
        d_a = products.rows(d_inner.t(), x.to(inner.dtype).t())
        for place, name in enumerate(names):
            segment.gradient.pairs[name].a.add_(d_a[place * rank : (place + 1) * rank])
    return d_inner, a


def _stacked(weights: LoraWeights, names: Sequence[str]) -> Tensor:
    """Give A of the layers one below the other [m * r, in]."""
    factors = [weights.pairs[name].a for name in names]
    return factors[0] if len(factors) == 1 else torch.cat(factors)


def _add_product(out: Tensor, inner: Tensor, b: Tensor, scale: float) -> None:
    """Compute out += scale * inner B^T, in the factors' float32 whatever the dtype of `out`."""
    if out.dtype == b.dtype:
        out.addmm_(inner, b.t(), alpha=scale)
    else:
        out.add_(torch.mm(inner, b.t()).mul_(scale).to(out.dtype))
