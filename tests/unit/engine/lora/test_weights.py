"""LoRA weights: how they start and lie."""

from __future__ import annotations

import math

import torch

from tinkex.engine.lora.weights import LoraGroup, LoraShape, initial_weights, parameter_count

CPU = torch.device("cpu")
SHAPE = LoraShape("layer", 24, 40)


def adapter(seed, rank=8, shapes=(SHAPE,)):
    weights = initial_weights(shapes, rank, 32.0, seed, CPU)
    with torch.no_grad():
        weights.flat.add_(torch.randn(weights.flat.shape) * 0.1)
    return weights


def test_start_is_uniform_and_zero():
    weights = initial_weights([SHAPE], 8, 32.0, 0, CPU)
    pair = weights.pairs["layer"]
    bound = 1 / math.sqrt(24)
    assert weights.scale == 4.0
    assert pair.a.abs().max() <= bound
    assert pair.a.abs().max() > 0.9 * bound
    assert pair.a.mean().abs() < 0.2 * bound
    assert pair.b.abs().max() == 0


def test_seed_decides_the_start():
    first, again, other = (initial_weights([SHAPE], 8, 32.0, s, CPU).flat for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_flat_buffer_holds_every_factor():
    shapes = [SHAPE, LoraShape("second", 3, 5)]
    weights = adapter(0, rank=2, shapes=shapes)
    assert weights.flat.numel() == parameter_count(shapes, 2) == 2 * (24 + 40 + 3 + 5)
    with torch.no_grad():
        weights.flat.fill_(7)
    assert all((p == 7).all() for p in weights.parameters)


def test_frozen_copy_does_not_follow():
    weights = adapter(0)
    copy = weights.frozen_copy()
    before = copy.flat.clone()
    with torch.no_grad():
        weights.flat.zero_()
    assert torch.equal(copy.flat, before)
    assert not any(p.requires_grad for p in copy.parameters)


def test_group_lays_outputs_side_by_side():
    group = LoraGroup.of(LoraShape("q", 24, 40), LoraShape("k", 24, 8))
    assert (group.rows_in, group.rows_out) == (24, 48)
    assert dict(group.columns) == {"q": slice(0, 40), "k": slice(40, 48)}
    assert group.names_of(adapter(0, shapes=(LoraShape("k", 24, 8),))) == ["k"]
