r"""LoRA on linear layers: weights of one adapter, and the layer that applies many of them at once.

y = W x + (alpha / r) B A x, with A [r, in] uniform in +-1/sqrt(in), B [out, r] zero at the start
(Hu et al. 2021, arXiv 2106.09685; the scale and the start as in "LoRA Without Regret", Thinking
Machines 2025). Owns the arithmetic; which adapters exist is `adapters`' matter, files are
`checkpoint`'s.

Rows of a batch come grouped by adapter, and each group is one small matrix product (the "segments"
of Punica's SGMV, arXiv 2310.18547); A and B are never gathered row by row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tinkex.engine.weight_layout import FrozenMatrix

UNEMBED = "lm_head"
"""Name of the unembedding among an adapter's modules (and in PEFT's files)."""


@dataclass(frozen=True, slots=True)
class FusedPart:
    """Where the base model holds a linear map: in one parameter for all experts."""

    parameter: str
    """Qualified name, e.g. `model.layers.0.mlp.experts.gate_up_proj`."""
    start: int
    """First row of the parameter's output that is this map's."""
    step: int
    """From one such row to the next."""


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Name and sizes of one linear layer that an adapter covers."""

    name: str
    """Qualified name in the causal LM, e.g. `model.layers.0.self_attn.q_proj`."""
    rows_in: int
    rows_out: int
    a_experts: int = 0
    """Experts that have an A of their own; 0 is one A for all, and for a layer without experts."""
    b_experts: int = 0
    """The same of B."""
    fused: FusedPart | None = None
    """Of a map of experts."""

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the shapes of A [r, in] and B [out, r], with experts before where it has them."""
        a, b = (rank, self.rows_in), (self.rows_out, rank)
        return (
            (self.a_experts, *a) if self.a_experts else a,
            (self.b_experts, *b) if self.b_experts else b,
        )


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors for one layer: `a` [r, in], `b` [out, r], float32.

    Of a layer of experts one of the two has a first dimension more (`LoraShape.factor_shapes`).
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LoraWeights:
    """All weights of one adapter, in one flat float32 buffer with a view for each factor.

    One buffer makes the optimiser, the norm, a copy and a finiteness check one operation each.
    """

    flat: Tensor
    shapes: tuple[LoraShape, ...]
    rank: int
    scale: float
    pairs: Mapping[str, LoraPair]

    @property
    def parameters(self) -> list[Tensor]:
        """The factors in the order of the flat buffer: a, b of each layer."""
        return [factor for pair in self.pairs.values() for factor in (pair.a, pair.b)]

    def over(self, flat: Tensor) -> LoraWeights:
        """Lay the same layers over another buffer [P]: a gradient, a moment, a copy."""
        return lora_weights(flat, self.shapes, self.rank, self.scale, trainable=False)

    def frozen_copy(self) -> LoraWeights:
        """Copy the present values into a buffer of their own, without gradients."""
        return self.over(self.flat.detach().clone())


def lora_weights(
    flat: Tensor, shapes: Sequence[LoraShape], rank: int, scale: float, *, trainable: bool
) -> LoraWeights:
    """Lay an adapter's factors over `flat` [parameter_count(shapes, rank)]."""
    pairs = {}
    offset = 0
    for shape in shapes:
        factors = []
        for sizes in shape.factor_shapes(rank):
            count = math.prod(sizes)
            view = flat[offset : offset + count].view(sizes).detach()
            factors.append(view.requires_grad_(trainable))
            offset += count
        pairs[shape.name] = LoraPair(*factors)
    return LoraWeights(flat, tuple(shapes), rank, scale, MappingProxyType(pairs))


def parameter_count(shapes: Sequence[LoraShape], rank: int) -> int:
    """Count the parameters of an adapter of `rank` over `shapes`."""
    return sum(math.prod(sizes) for shape in shapes for sizes in shape.factor_shapes(rank))


def initial_weights(
    shapes: Sequence[LoraShape], rank: int, alpha: float, seed: int, device: torch.device
) -> LoraWeights:
    """Make the weights of a new adapter: A uniform +-1/sqrt(in) from `seed`, B zero."""
    flat = torch.zeros(parameter_count(shapes, rank), device=device)
    weights = lora_weights(flat, shapes, rank, alpha / rank, trainable=True)
    # Drawn on the CPU, so that a seed gives one adapter whatever the device.
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        for shape in shapes:
            bound = 1 / math.sqrt(shape.rows_in)
            a = weights.pairs[shape.name].a
            drawn = torch.rand(a.shape, generator=generator)
            a.copy_(drawn.mul_(2 * bound).sub_(bound))
    return weights


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Rows `start` to `end` of a packed batch belong to one adapter."""

    start: int
    end: int
    weights: LoraWeights


class LoraRouting:
    """Which adapter each row of the present forward uses; shared by all layers of one model.

    The model runner sets `segments` before each forward and clears it after. Segments are
    disjoint, in order, and need not cover every row.
    """

    def __init__(self, row_multiple: int = 1) -> None:
        self.row_multiple = row_multiple
        self._segments: tuple[LoraSegment, ...] = ()
        self.plans: dict[tuple[int, ...], _SlotPlan] = {}
        """Of the present segments, by the places of those that have a layer."""
        self.live: int | None = None
        """Rows of the present forward that count, when those after them are filler."""

    @property
    def segments(self) -> tuple[LoraSegment, ...]:
        """Rows by adapter of the present forward; empty between forwards."""
        return self._segments

    @segments.setter
    def segments(self, segments: tuple[LoraSegment, ...]) -> None:
        self._segments = segments
        self.plans = {}


class LoraLinear(nn.Module):
    """A frozen linear layer plus the LoRA of each row's adapter."""

    def __init__(self, matrix: FrozenMatrix, name: str, routing: LoraRouting) -> None:
        super().__init__()
        self.matrix = matrix
        self._name = name
        self._routing = routing

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]; leading dimensions hold the batch's rows in order."""
        rows = x.reshape(-1, x.shape[-1])
        out = self.matrix.rows_times(rows)
        if self._routing.segments:
            routing = self._routing
            add_lora(out, rows, self._name, routing.segments, routing.row_multiple, routing.plans)
        return out.view(*x.shape[:-1], -1)


def add_lora(
    out: Tensor,
    rows: Tensor,
    name: str,
    segments: Sequence[LoraSegment],
    row_multiple: int,
    plans: dict[tuple[int, ...], _SlotPlan] | None = None,
) -> None:
    """Add each segment's LoRA of layer `name` to `out`, in place.

    Without gradients the sum is formed in another way than with them (product, scale, sum), and in
    the same way for a row alone, among rows of its adapter and among those of others: its bits must
    not tell.

    Args:
        out: [N, out], the frozen layer's output.
        rows: [N, in], its input.
        name: The layer.
        segments: Rows by adapter; an adapter without this layer leaves its rows alone.
        row_multiple: Small segments are computed padded to a multiple of this many rows, so that a
            row's bits do not depend on how many rows share its adapter (see `EngineConfig`).
        plans: Where what the layers of one forward share is kept.
    """
    present = [segment for segment in segments if name in segment.weights.pairs]
    training = torch.is_grad_enabled()
    if not training and len(present) > 1 and len(present) * _SMALL >= rows.shape[0]:
        places = tuple(segment.start for segment in present)
        plan = None if plans is None else plans.get(places)
        if plan is None:
            plan = _slot_plan(present, row_multiple, rows.device)
            if plans is not None:
                plans[places] = plan
        _add_many(out, rows, name, plan)
        return
    add = _add_pair if training else _add_delta
    for segment in present:
        pair = segment.weights.pairs[name]
        start, end, scale = segment.start, segment.end, segment.weights.scale
        if start == 0 and end == rows.shape[0]:
            add(out, rows, pair, scale)
            continue
        extra = -(end - start) % row_multiple
        if not extra:
            add(out[start:end], rows[start:end], pair, scale)
            continue
        padded = F.pad(out[start:end], (0, 0, 0, extra))
        add(padded, F.pad(rows[start:end], (0, 0, 0, extra)), pair, scale)
        out[start:end] = padded[: end - start]


_SMALL = 16
"""Rows of a segment, on average, up to which segments are gathered and padded all at once."""


@dataclass(frozen=True, slots=True)
class _SlotPlan:
    """Many small segments, each padded with rows of its own to a fixed multiple: their slots."""

    segments: tuple[tuple[LoraSegment, int, int], ...]
    """Each with its slots, from and to."""
    slots: Tensor
    """[S] the row in each slot."""
    scales: Tensor
    """[S, 1] float32."""
    kept: Tensor | None
    """[n] slots that are no padding; None when all are."""
    targets: Tensor
    """[n] their rows."""


def _slot_plan(
    segments: Sequence[LoraSegment], row_multiple: int, device: torch.device
) -> _SlotPlan:
    slots: list[int] = []
    scales: list[float] = []
    kept: list[int] = []
    targets: list[int] = []
    placed = []
    for segment in segments:
        rows = range(segment.start, segment.end)
        start, padding = len(slots), -len(rows) % row_multiple
        kept += range(start, start + len(rows))
        targets += rows
        slots += [*rows, *[segment.start] * padding]
        scales += [segment.weights.scale] * (len(rows) + padding)
        placed.append((segment, start, len(slots)))
    return _SlotPlan(
        tuple(placed),
        torch.tensor(slots, device=device),
        torch.tensor(scales, device=device)[:, None],
        torch.tensor(kept, device=device) if len(kept) < len(slots) else None,
        torch.tensor(targets, device=device),
    )


def _add_many(out: Tensor, rows: Tensor, name: str, plan: _SlotPlan) -> None:
    """Do `add_lora` for many small segments: one gather and one sum for all, two products each."""
    dtype = plan.segments[0][0].weights.flat.dtype
    gathered = rows[plan.slots].to(dtype)
    delta = torch.empty(len(plan.slots), out.shape[1], dtype=dtype, device=rows.device)
    for segment, start, end in plan.segments:
        pair = segment.weights.pairs[name]
        inner = torch.mm(gathered[start:end], pair.a.t())
        torch.mm(inner, pair.b.t(), out=delta[start:end])
    delta.mul_(plan.scales)
    if plan.kept is not None:
        delta = delta[plan.kept]
    if len(plan.targets) == out.shape[0]:
        out.add_(delta)
    else:
        out[plan.targets] = out[plan.targets].add_(delta.to(out.dtype))


def _add_delta(out: Tensor, rows: Tensor, pair: LoraPair, scale: float) -> None:
    """Compute out += scale * (rows A^T B^T), the product first: the arithmetic of `_add_many`."""
    delta = torch.mm(torch.mm(rows.to(pair.a.dtype), pair.a.t()), pair.b.t())
    out.add_(delta.mul_(scale).to(out.dtype))


def _add_pair(out: Tensor, rows: Tensor, pair: LoraPair, scale: float) -> None:
    """Compute out += scale * rows A^T B^T, in float32 whatever the base model's dtype."""
    if rows.dtype == pair.a.dtype:
        out.addmm_(F.linear(rows, pair.a), pair.b.t(), alpha=scale)
        return
    delta = F.linear(F.linear(rows.to(pair.a.dtype), pair.a), pair.b)
    out.add_(delta.mul(scale).to(out.dtype))
