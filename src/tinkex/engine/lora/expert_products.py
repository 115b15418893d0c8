r"""The two products of a layer of experts, each with the LoRA of every row's adapter.

    gate_up = W1_e x + s [Bg_e Ag x ; Bu_e Au x]      for each slot (x, e)
    y       = sum_k w_k (W2_e h_k) + s B (sum_k w_k A_e h_k)      for each row

The factor on the side of the model's hidden width is shared by all experts (Ag, Au and B here), the
other is each expert's own, as the official service has it (`get_lora_param_count` of its cookbook
says so). Hence what is shared is multiplied once for each row of the batch, not for each slot.

Owns these two products and their gradients by hand: autograd would keep a graph node for each
expert and adapter. Rows and slots are `expert_plan`'s, names and modules `experts`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.lora.expert_plan import ExpertPlan
    from tinkex.engine.matrices.frozen import FrozenMatrix


@dataclass(frozen=True, slots=True)
class ExpertAdapter:
    """One adapter's place in the batch; its factors are arguments of the products."""

    start: int
    end: int
    """Rows of the batch, from and to."""
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class ExpertBatch:
    """What both products of one layer have in common."""

    plan: ExpertPlan
    adapters: tuple[ExpertAdapter, ...]
    row_multiple: int
    """That LoRA products over rows whose number depends on company are filled up to; 1 in training,
    where an adapter's rows are always the same."""
    interleaved: bool
    """Whether gate and up alternate in `gate_up` rather than follow each other."""

    @property
    def widest(self) -> int:
        """Largest rank among the adapters."""
        return max((one.rank for one in self.adapters), default=0)

    def halves(self, gate_up: Tensor) -> tuple[Tensor, Tensor]:
        """Give views of gate and up, [n, I] each, of [n, 2 I]."""
        if self.interleaved:
            return gate_up[:, ::2], gate_up[:, 1::2]
        width = gate_up.shape[1] // 2
        return gate_up[:, :width], gate_up[:, width:]

    def times(self, rows: Tensor, factor: Tensor) -> Tensor:
        """Compute rows factor^T: [n, q] by [p, q] -> [n, p], with filler rows where they count."""
        rows = rows.contiguous()
        extra = -rows.shape[0] % self.row_multiple
        if not extra:
            return rows @ factor.t()
        return (F.pad(rows, (0, 0, 0, extra)) @ factor.t())[: rows.shape[0]]


class GateUp(torch.autograd.Function):
    """The first product: [N, C] rows -> [S, 2 I] slots.

    Factors follow by adapter: A of gate [r, C], B of gate [E, I, r], A of up, B of up.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, batch: ExpertBatch, matrices: Sequence[FrozenMatrix], *factors: Tensor
    ) -> Tensor:
        """See the class."""
        plan, four = batch.plan, _grouped(factors, 4)
        inner = torch.zeros(x.shape[0], 2 * batch.widest, device=x.device)
        inner = inner.to(factors[0].dtype) if factors else inner
        for one, (a_gate, _, a_up, _) in zip(batch.adapters, four, strict=True):
            rows = x[one.start : one.end].to(a_gate.dtype)
            low = batch.times(rows, torch.cat((a_gate, a_up)))
            inner[one.start : one.end, : 2 * one.rank] = low.mul_(one.scale)
        inner = plan.gather(inner)
        picked = plan.gather(x)
        out = x.new_empty(picked.shape[0], matrices[0].shape[0])
        for expert, start, end, adapters in plan.experts:
            out[start:end] = matrices[expert].rows_times(picked[start:end])
            for u, first, last in adapters:
                r = batch.adapters[u].rank
                gate, up = batch.halves(out[first:last])
                gate.add_(batch.times(inner[first:last, :r], four[u][1][expert]))
                up.add_(batch.times(inner[first:last, r : 2 * r], four[u][3][expert]))
        ctx.batch, ctx.matrices = batch, matrices
        ctx.save_for_backward(x, inner, *factors)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients by the rows and the factors."""
        x, inner, *factors = ctx.saved_tensors
        batch, four = ctx.batch, _grouped(factors, 4)
        plan, grads = batch.plan, [torch.zeros_like(f) for f in factors]
        own = _grouped(grads, 4)
        g = gradients[0].contiguous()
        by_slot = g.new_empty(g.shape[0], x.shape[1])
        low = torch.zeros_like(inner)
        for expert, start, end, adapters in plan.experts:
            if ctx.needs_input_grad[0]:
                by_slot[start:end] = ctx.matrices[expert].times(g[start:end])
            for u, first, last in adapters:
                r = batch.adapters[u].rank
                for half, side, columns in zip(
                    batch.halves(g[first:last]), (1, 3), (slice(r), slice(r, 2 * r)), strict=True
                ):
                    slope = half.to(inner.dtype).contiguous()
                    low[first:last, columns] = slope @ four[u][side][expert]
                    own[u][side][expert] = slope.t() @ inner[first:last, columns].contiguous()
        found = plan.sum(by_slot) if ctx.needs_input_grad[0] else None
        low = plan.sum(low)
        for one, (a_gate, _, a_up, _), mine in zip(batch.adapters, four, own, strict=True):
            r, at = one.rank, slice(one.start, one.end)
            slope = (low[at, : 2 * r] * one.scale).contiguous()
            both = slope.t() @ x[at].to(slope.dtype)
            mine[0].copy_(both[:r])
            mine[2].copy_(both[r:])
            if found is not None:
                found[at] += (slope @ torch.cat((a_gate, a_up))).to(found.dtype)
        return found, None, None, *grads


class Down(torch.autograd.Function):
    """The second product and the sum over a row's experts: [S, I] slots -> [N, C] rows.

    Factors follow by adapter: A [E, r, I], B [C, r].
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weights: Tensor,
        batch: ExpertBatch,
        matrices: Sequence[FrozenMatrix],
        *factors: Tensor,
    ) -> Tensor:
        """See the class; `weights` [N, k] are the router's."""
        plan, two = batch.plan, _grouped(factors, 2)
        out = h.new_empty(h.shape[0], matrices[0].shape[0])
        low = torch.zeros(h.shape[0], batch.widest, device=h.device)
        low = low.to(factors[0].dtype) if factors else low
        for expert, start, end, adapters in plan.experts:
            out[start:end] = matrices[expert].rows_times(h[start:end])
            for u, first, last in adapters:
                a = two[u][0][expert]
                low[first:last, : a.shape[0]] = batch.times(h[first:last].to(a.dtype), a)
        y = plan.sum(out, weights.to(out.dtype))
        low = plan.sum(low, weights.to(low.dtype))
        for one, (_, b) in zip(batch.adapters, two, strict=True):
            at = slice(one.start, one.end)
            y[at] += batch.times(low[at, : one.rank], b).mul_(one.scale).to(y.dtype)
        ctx.batch, ctx.matrices = batch, matrices
        ctx.save_for_backward(h, weights, low, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients by the slots, the router's weights and the factors."""
        h, weights, low, *factors = ctx.saved_tensors
        batch, two = ctx.batch, _grouped(factors, 2)
        plan, grads = batch.plan, [torch.zeros_like(f) for f in factors]
        own = _grouped(grads, 2)
        g = gradients[0].contiguous()
        g_low = torch.zeros_like(low)
        for one, (_, b), mine in zip(batch.adapters, two, own, strict=True):
            at = slice(one.start, one.end)
            slope = g[at].to(low.dtype) * one.scale
            g_low[at, : one.rank] = slope @ b
            mine[1].copy_(slope.t() @ low[at, : one.rank].contiguous())
        g, g_low, share = plan.gather(g), plan.gather(g_low), plan.scatter(weights)[:, None]
        found = torch.empty_like(h)  # until the end without the router's weights
        by_weight = torch.zeros_like(share)
        for expert, start, end, adapters in plan.experts:
            matrix = ctx.matrices[expert]
            found[start:end] = matrix.times(g[start:end])
            if matrix.bias is not None:
                by_weight[start:end, 0] = (g[start:end] * matrix.bias).sum(dim=1)
            for u, first, last in adapters:
                a = two[u][0][expert]
                slope = g_low[first:last, : a.shape[0]].contiguous()
                found[first:last] += (slope @ a).to(found.dtype)
                slope = slope * share[first:last].to(slope.dtype)
                own[u][0][expert] = slope.t() @ h[first:last].to(slope.dtype)
        by_weight[:, 0] += (found * h).sum(dim=1)
        return found.mul_(share), by_weight[:, 0][plan.slots], None, None, *grads


def _grouped(factors: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
    return [factors[i : i + size] for i in range(0, len(factors), size)]
