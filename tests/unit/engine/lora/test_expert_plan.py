"""The slots of a batch: sorted, filled up, and back to rows."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.lora.expert_plan import AdapterRows, ExpertRows, plan_experts

CHOSEN = torch.tensor([[2, 0], [0, 2], [2, 1], [0, 2], [2, 0]])


def test_slots_lie_by_expert_then_adapter_then_token():
    plan = plan_experts(CHOSEN, [(0, 2), (2, 4)], experts=4, row_multiple=1)
    assert plan.experts == (
        ExpertRows(0, 0, 4, (AdapterRows(0, 1, 3), AdapterRows(1, 3, 4))),
        ExpertRows(1, 4, 5, (AdapterRows(1, 4, 5),)),
        ExpertRows(2, 5, 10, (AdapterRows(0, 6, 8), AdapterRows(1, 8, 10))),
    )
    assert plan.tokens.tolist() == [4, 0, 1, 3, 2, 4, 0, 1, 2, 3]


@pytest.mark.parametrize("row_multiple", [1, 4])
@pytest.mark.parametrize("segments", [[], [(0, 5)], [(0, 1), (3, 5)]])
def test_every_choice_has_one_slot_that_reads_its_row(segments, row_multiple):
    plan = plan_experts(CHOSEN, segments, experts=4, row_multiple=row_multiple)
    assert len(set(plan.slots.flatten().tolist())) == CHOSEN.numel()
    expert_of_slot = torch.full((len(plan.tokens),), -1)
    for rows in plan.experts:
        assert (rows.end - rows.start) % row_multiple == 0
        expert_of_slot[rows.start : rows.end] = rows.expert
    assert plan.experts[-1].end == len(plan.tokens)
    for row in range(len(CHOSEN)):
        assert plan.tokens[plan.slots[row]].tolist() == [row, row]
        assert expert_of_slot[plan.slots[row]].tolist() == CHOSEN[row].tolist()


def test_sum_undoes_gather():
    plan = plan_experts(CHOSEN, [(1, 4)], experts=3, row_multiple=4)
    rows, weights = torch.randn(5, 7), torch.rand(5, 2)
    torch.testing.assert_close(plan.sum(plan.gather(rows)), 2 * rows)
    expected = rows * weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(plan.sum(plan.gather(rows), weights), expected)


def test_filler_has_no_weight():
    plan = plan_experts(CHOSEN, [], experts=3, row_multiple=4)
    weights = torch.rand(5, 2)
    by_slot = plan.scatter(weights)
    assert torch.equal(by_slot[plan.slots], weights)
    torch.testing.assert_close(by_slot.sum(), weights.sum())
