r"""LoRA on linear layers: weights of one adapter, and the layer that applies many of them at once.

y = W x + (alpha / r) B A x, with A [r, in] uniform in +-1/sqrt(in), B [out, r] zero at the start
(Hu et al. 2021, arXiv 2106.09685; the scale and the start as in "LoRA Without Regret", Thinking
Machines 2025). Owns the arithmetic; which adapters exist is `adapters`' matter, files are
`checkpoint`'s.

Rows of a batch come grouped by adapter, and each group is one small matrix product (the "segments"
of Punica's SGMV, arXiv 2310.18547); A and B are never gathered row by row.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


UNEMBED = "lm_head"
"""Name of the unembedding among an adapter's modules."""


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
    own_name: str = ""
    """Its module's name in the causal LM, where `name` is another: of some unembeddings."""

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

    @property
    def wide(self) -> LoraPair:
        """The factors detached and, of rank 1, with a second one of zeros: for products.

        A product with a single row or column is another kernel, whose bits tell where its rows lie
        and how many products are batched.
        """
        a, b = self.a.detach(), self.b.detach()
        if a.shape[0] == 1:
            a, b = F.pad(a, (0, 0, 0, 1)), F.pad(b, (0, 1))
        return LoraPair(a, b)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
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
    gradient: LoraWeights | None = None
    """In training, where the gradients of its factors are added."""


@dataclass(frozen=True, slots=True)
class LoraGroup:
    """Layers that read the same input, their matrices one below the other in one product."""

    names: tuple[str, ...]
    columns: Mapping[str, slice]
    """Where each layer's part of the output lies."""
    rows_in: int
    rows_out: int
    """Of all layers together."""

    @classmethod
    def of(cls, *shapes: LoraShape) -> LoraGroup:
        """Lay the outputs of `shapes`, which read the same input, side by side."""
        ends = list(itertools.accumulate(shape.rows_out for shape in shapes))
        columns = {
            s.name: slice(end - s.rows_out, end) for s, end in zip(shapes, ends, strict=True)
        }
        return cls(tuple(columns), MappingProxyType(columns), shapes[0].rows_in, ends[-1])

    def names_of(self, weights: LoraWeights) -> list[str]:
        """Give the layers that an adapter has."""
        return [name for name in self.names if name in weights.pairs]
