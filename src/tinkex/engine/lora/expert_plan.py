"""Which rows of a batch go to which expert: the slots that a layer's expert products run over.

Every token has `k` slots, one for each expert that the router chose for it. Slots lie sorted by
expert, within an expert by adapter, within an adapter by token: one product for each expert, and
one for each adapter that has rows there. An expert's rows are filled up to a fixed multiple, so
that a row's bits do not depend on what goes with it (`EngineConfig.row_multiple`).

Owns the order. The arithmetic is `expert_products`'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


class AdapterRows(NamedTuple):
    """Slots `start` to `end` of one expert belong to the adapter of this number."""

    adapter: int
    start: int
    end: int


class ExpertRows(NamedTuple):
    """Slots `start` to `end` go to one expert; filler slots, at the end, count."""

    expert: int
    start: int
    end: int
    adapters: tuple[AdapterRows, ...]


@dataclass(frozen=True, slots=True)
class ExpertPlan:
    """The slots of one layer in one forward."""

    experts: tuple[ExpertRows, ...]
    """Experts that have rows, in order."""
    tokens: Tensor
    """[S] int64, the row of the batch that each slot reads; filler reads row 0."""
    slots: Tensor
    """[N, k] int64, the slots of each row."""

    def gather(self, rows: Tensor) -> Tensor:
        """Copy rows [N, C] of the batch to their slots [S, C]."""
        return rows.index_select(0, self.tokens)

    def sum(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add up the slots [S, C] of each row, with weights [N, k] if given: [N, C].

        One slot after the other, so that a row's bits depend on its own slots alone.
        """
        total: Tensor | None = None
        for j in range(self.slots.shape[1]):
            part = values.index_select(0, self.slots[:, j])
            if weights is not None:
                part = part.mul_(weights[:, j, None])
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def scatter(self, weights: Tensor) -> Tensor:
        """Copy weights [N, k] to their slots [S]; filler has 0."""
        found = weights.new_zeros(self.tokens.shape[0])
        found[self.slots] = weights
        return found


def plan_experts(
    chosen: Tensor, segments: Sequence[tuple[int, int]], experts: int, row_multiple: int
) -> ExpertPlan:
    """Lay out the slots of a batch.

    Args:
        chosen: [N, k] int64, the experts of each row.
        segments: Rows from and to of each adapter, disjoint; they need not cover every row.
        experts: How many there are.
        row_multiple: Rows of an expert are filled up to a multiple of this.
    """
    count, k = chosen.shape
    kinds = len(segments) + 1
    owner = torch.zeros(count, dtype=torch.int64, device=chosen.device)
    for number, (start, end) in enumerate(segments, 1):
        owner[start:end] = number
    keys = (chosen * kinds + owner[:, None]).reshape(-1)
    order = keys.argsort(stable=True)
    counts: list[int] = keys.bincount(minlength=experts * kinds).tolist()
    found: list[ExpertRows] = []
    shifts: list[int] = []
    totals: list[int] = []
    start = 0
    for expert in range(experts):
        of_kind = counts[expert * kinds : (expert + 1) * kinds]
        total = sum(of_kind)
        if not total:
            continue
        end = start + total + -total % row_multiple
        found.append(ExpertRows(expert, start, end, _adapter_rows(of_kind, start)))
        shifts.append(start - sum(totals))
        totals.append(total)
        start = end
    shift = torch.tensor(shifts, device=order.device).repeat_interleave(
        torch.tensor(totals, device=order.device)
    )
    place = torch.arange(len(order), device=order.device).add_(shift)
    tokens = order.new_zeros(start)
    tokens[place] = order // k
    slots = torch.empty_like(order)
    slots[order] = place
    return ExpertPlan(tuple(found), tokens, slots.view(count, k))


def _adapter_rows(counts: Sequence[int], start: int) -> tuple[AdapterRows, ...]:
    """Split an expert's slots by adapter; `counts` begins with the rows that have none."""
    rows = []
    start += counts[0]
    for adapter, count in enumerate(counts[1:]):
        if count:
            rows.append(AdapterRows(adapter, start, start + count))
            start += count
    return tuple(rows)
