"""Experts with adapters, against the formula in double precision and against transformers."""

from __future__ import annotations

import pytest
import torch
from engine_support import datum, flat, gradient, shake, tiny_engine, tiny_model
from torch import nn
from torch.nn import functional as F

from tinkex.engine.lora.experts import LoraExperts, expert_modules, expert_shapes
from tinkex.engine.lora.linear import LoraRouting
from tinkex.engine.lora.weights import LoraSegment, lora_weights, parameter_count
from tinkex.engine.matrices.layout import WeightLayout
from tinkex.engine.matrices.products import Products
from tinkex.types import LoraConfig

EXPERTS, WIDTH, INNER, ROWS, CHOICES = 5, 6, 7, 11, 3
NAME = "model.layers.0.mlp.experts"


class Fused(nn.Module):
    """Fused experts as transformers lays them out, in double precision."""

    has_gate = True

    def __init__(self, *, transposed: bool, interleaved: bool, bias: bool) -> None:
        super().__init__()
        self.is_transposed, self.is_concatenated, self.has_bias = transposed, not interleaved, bias
        g = torch.Generator().manual_seed(0)
        for name, rows, columns in (
            ("gate_up_proj", 2 * INNER, WIDTH),
            ("down_proj", WIDTH, INNER),
        ):
            sizes = (columns, rows) if transposed else (rows, columns)
            weight = torch.randn(EXPERTS, *sizes, generator=g, dtype=torch.float64)
            setattr(self, name, nn.Parameter(weight))
            if bias:
                made = torch.randn(EXPERTS, rows, generator=g, dtype=torch.float64)
                setattr(self, f"{name}_bias", nn.Parameter(made))

    def _apply_gate(self, gate_up):
        gate, up = (
            gate_up.chunk(2, dim=-1)
            if self.is_concatenated
            else (gate_up[..., ::2], gate_up[..., 1::2])
        )
        return F.silu(gate) * up

    def dense(self, name, expert):
        weight = getattr(self, name)[expert]
        bias = getattr(self, f"{name}_bias")[expert] if self.has_bias else 0.0
        return (weight.t() if self.is_transposed else weight), bias


def by_formula(fused, x, chosen, weights, segments):
    """Every row, expert by expert, from the definition."""
    out = []
    for row in range(len(x)):
        total = torch.zeros(WIDTH, dtype=torch.float64)
        adapter = next((s.weights for s in segments if s.start <= row < s.end), None)
        for expert, weight in zip(chosen[row].tolist(), weights[row], strict=True):
            w, bias = fused.dense("gate_up_proj", expert)
            w2, bias2 = fused.dense("down_proj", expert)
            gate_up = w @ x[row] + bias
            columns = (
                (slice(INNER), slice(INNER, None))
                if fused.is_concatenated
                else (slice(0, None, 2), slice(1, None, 2))
            )
            if adapter is not None:
                delta = torch.zeros_like(gate_up)
                for leaf, at in zip(("gate_proj", "up_proj"), columns, strict=True):
                    pair = adapter.pairs[f"{NAME}.{leaf}"]
                    delta[at] = adapter.scale * pair.b[expert] @ (pair.a @ x[row])
                gate_up = gate_up + delta
            h = fused._apply_gate(gate_up)
            y = w2 @ h + bias2
            if adapter is not None:
                pair = adapter.pairs[f"{NAME}.down_proj"]
                y = y + adapter.scale * pair.b @ (pair.a[expert] @ h)
            total = total + weight * y
        out.append(total)
    return torch.stack(out)


def batch():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64)
    scores = torch.rand(ROWS, EXPERTS, generator=g, dtype=torch.float64)
    weights, chosen = scores.topk(CHOICES, dim=1)
    return x.requires_grad_(), chosen, weights.detach().requires_grad_()


def segments_of(fused):
    """Two adapters of unequal ranks, and rows without one."""
    shapes = expert_shapes(NAME, fused)
    made = []
    for number, (start, end, rank) in enumerate([(0, 4, 2), (6, ROWS, 3)]):
        g = torch.Generator().manual_seed(number)
        size = parameter_count(shapes, rank)
        values = torch.randn(size, generator=g, dtype=torch.float64)
        made.append(
            LoraSegment(start, end, lora_weights(values, shapes, rank, 0.5, trainable=True))
        )
    return made


LAYOUTS = [
    {"transposed": False, "interleaved": False, "bias": False},
    {"transposed": True, "interleaved": True, "bias": True},
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("row_multiple", [1, 4])
def test_values_and_gradients_equal_the_formula_in_double_precision(layout, row_multiple):
    fused = Fused(**layout)
    segments = segments_of(fused)
    x, chosen, weights = batch()
    leaves = [x, weights, *(f for s in segments for f in s.weights.parameters)]
    expected = by_formula(fused, x, chosen, weights, segments)
    slope = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, slope)
    routing = LoraRouting(Products(onednn=False), row_multiple)
    experts = LoraExperts(fused, NAME, routing, WeightLayout.PLAIN)
    routing.rows = tuple(segments)
    found = experts(x, chosen, weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(found, leaves, slope)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(experts(x, chosen, weights), expected, rtol=1e-10, atol=1e-10)


def test_parameters_are_counted_as_the_official_service_counts_them():
    """Qwen3-30B-A3B at rank 1: the cookbook's table says 14,450,688 for the MLPs."""

    class Large:
        is_transposed = False
        is_concatenated = True
        down_proj = torch.empty(128, 2048, 768, device="meta")

    assert 48 * parameter_count(expert_shapes(NAME, Large()), 1) == 14_450_688


def test_experts_without_a_gate_are_not_ours():
    fused = Fused(**LAYOUTS[0])
    holder = nn.ModuleDict({"experts": fused})
    assert list(expert_modules(holder)) == ["experts"]
    fused.has_gate = False
    assert not expert_modules(holder)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_adapter_covers_every_expert_and_no_router(family):
    engine = tiny_engine(family)
    engine.create_adapter("a", LoraConfig(rank=2))
    shake(engine, "a")
    pairs = engine._pool.adapter("a").weights.pairs
    assert {f"{NAME}.gate_proj", f"{NAME}.up_proj", f"{NAME}.down_proj"} <= set(pairs)
    assert not any("gate" in n.split(".") or "router" in n for n in pairs)
    before = flat(engine, "a")
    engine.forward_backward("a", [datum(60)], "cross_entropy")
    grads = engine._pool.adapter("a").weights.over(gradient(engine, "a")).pairs
    for leaf in ("gate_proj", "up_proj", "down_proj"):
        pair = grads[f"{NAME}.{leaf}"]
        assert pair.a.abs().max() > 0
        assert pair.b.abs().max() > 0
    assert torch.equal(flat(engine, "a"), before)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_gradient_points_where_the_loss_grows(family):
    """A finite difference along a random direction; every expert is chosen, so nothing jumps."""
    engine = tiny_engine(model=tiny_model(family, num_experts_per_tok=4, num_experts=4))
    engine.create_adapter("a", LoraConfig(rank=2, seed=1))
    shake(engine, "a")
    adapter = engine._pool.adapter("a")
    data = [datum(12), datum(7, seed=1)]
    engine.forward_backward("a", data, "cross_entropy")
    slope = gradient(engine, "a")
    direction = slope / slope.norm()
    losses = []
    for step in (2e-3, -4e-3):
        with torch.no_grad():
            adapter.weights.flat.add_(direction, alpha=step)
        output = engine.forward_backward("a", data, "cross_entropy", forward_only=True)
        losses.append(output.metrics["loss:sum"])
    assert (losses[0] - losses[1]) / 4e-3 == pytest.approx(float(slope.norm()), rel=1e-2)


@torch.no_grad()
def test_filler_rows_are_left_out_and_change_nothing():
    fused = Fused(**LAYOUTS[0])
    routing = LoraRouting(Products(onednn=False), 4)
    segments = tuple(segments_of(fused))
    experts = LoraExperts(fused, NAME, routing, WeightLayout.PLAIN)
    x, chosen, weights = batch()
    routing.rows = segments
    whole = experts(x, chosen, weights)
    routing.live = 9
    found = experts(x, chosen, weights)
    assert torch.equal(found[:9], whole[:9])
    assert not found[9:].any()
