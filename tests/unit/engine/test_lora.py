"""LoRA weights and the layer that applies many adapters at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tinkex.engine.lora import (
    LoraLinear,
    LoraRouting,
    LoraSegment,
    LoraShape,
    initial_weights,
    parameter_count,
)
from tinkex.engine.matrix import Matrix

CPU = torch.device("cpu")
SHAPE = LoraShape("layer", 24, 40)


def adapter(seed, rank=8, shapes=(SHAPE,)):
    weights = initial_weights(shapes, rank, 32.0, seed, CPU)
    with torch.no_grad():
        weights.flat.add_(torch.randn(weights.flat.shape) * 0.1)
    return weights


def layer(row_multiple=4, bias=True):
    routing = LoraRouting(row_multiple)
    linear = nn.Linear(24, 40, bias=bias)
    matrix = Matrix(linear.weight.detach(), linear.bias.detach() if bias else None, packed=False)
    return LoraLinear(matrix, "layer", routing), routing


def reference(linear, x, weights):
    pair = weights.pairs["layer"]
    base = nn.functional.linear(x, linear.matrix.dense(), linear.matrix.bias)
    return base + weights.scale * x @ pair.a.T @ pair.b.T


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


def test_without_segments_the_layer_is_the_frozen_one():
    linear, _ = layer()
    x = torch.randn(1, 5, 24)
    assert torch.equal(
        linear(x), nn.functional.linear(x, linear.matrix.dense(), linear.matrix.bias)
    )


def test_each_row_gets_its_own_adapter():
    linear, routing = layer()
    a, b = adapter(0, rank=4), adapter(1, rank=16)
    other = adapter(2, shapes=(LoraShape("elsewhere", 24, 40),))
    x = torch.randn(1, 20, 24)
    routing.segments = (
        LoraSegment(0, 7, a),
        LoraSegment(7, 8, b),
        LoraSegment(10, 15, b),
        LoraSegment(15, 20, other),
    )
    y = linear(x)[0]
    torch.testing.assert_close(y[:7], reference(linear, x[0, :7], a))
    torch.testing.assert_close(y[7:8], reference(linear, x[0, 7:8], b))
    torch.testing.assert_close(y[10:15], reference(linear, x[0, 10:15], b))
    plain = linear.matrix.rows_times(x[0])
    torch.testing.assert_close(y[8:10], plain[8:10])
    torch.testing.assert_close(y[15:], plain[15:])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 9])
def test_row_has_the_same_bits_whatever_its_company(count):
    linear, routing = layer()
    a, b = adapter(0), adapter(1)
    x = torch.randn(1, 16, 24)
    routing.segments = (LoraSegment(0, count, a), LoraSegment(count, 16, b))
    together = linear(x)[0]
    filler = torch.zeros(1, -count % 4, 24)
    routing.segments = (LoraSegment(0, count + filler.shape[1], a),)
    alone = linear(torch.cat([x[:, :count], filler], dim=1))[0]
    assert torch.equal(together[:count], alone[:count])


def test_gradients_equal_autograd_over_segments():
    linear, routing = layer(bias=False)
    a, b = adapter(0), adapter(1)
    x = torch.randn(12, 24, requires_grad=True)
    routing.segments = (LoraSegment(0, 8, a), LoraSegment(8, 12, b))
    slope = torch.randn(12, 40)
    found = torch.autograd.grad((linear(x) * slope).sum(), [x, *a.parameters, *b.parameters])
    y = torch.cat([reference(linear, x[:8], a), reference(linear, x[8:], b)])
    expected = torch.autograd.grad((y * slope).sum(), [x, *a.parameters, *b.parameters])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_adapter_stays_float32_over_a_bfloat16_base():
    plain, routing = layer()
    half = Matrix(plain.matrix.dense().bfloat16(), plain.matrix.bias.bfloat16(), packed=False)
    linear = LoraLinear(half, "layer", routing)
    a = adapter(0)
    x = torch.randn(8, 24)
    routing.segments = (LoraSegment(0, 8, a),)
    y = linear(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), reference(plain, x, a), rtol=0.05, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 3, 2, 1), (4, 1, 8), (2, 0, 5)])
def test_many_small_segments_get_their_own_adapters_with_the_bits_of_a_row_alone(counts):
    linear, routing = layer()
    adapters = [adapter(seed, rank=4 + seed) for seed in range(len(counts))]
    spare = 2  # rows of no adapter, at the end
    x = torch.randn(sum(counts) + spare, 24)
    segments, start = [], 0
    for count, one in zip(counts, adapters, strict=True):
        if count:
            segments.append(LoraSegment(start, start + count, one))
        start += count
    routing.segments = tuple(segments)
    found = linear(x)
    for segment in segments:
        at = slice(segment.start, segment.end)
        torch.testing.assert_close(found[at], reference(linear, x[at], segment.weights))
        for row in range(segment.start, segment.end):
            routing.segments = (LoraSegment(0, 4, segment.weights),)
            alone = linear(x[row : row + 1].expand(4, -1).contiguous())
            assert torch.equal(alone[0], found[row])
    assert torch.equal(found[-spare:], linear.matrix.rows_times(x)[-spare:])


@torch.no_grad()
def test_adapter_without_the_layer_leaves_its_rows_among_many():
    linear, routing = layer()
    other = adapter(2, shapes=(LoraShape("elsewhere", 24, 40),))
    x = torch.randn(3, 24)
    ones = (adapter(0), other, adapter(1))
    routing.segments = tuple(LoraSegment(i, i + 1, one) for i, one in enumerate(ones))
    found = linear(x)
    assert torch.equal(found[1], linear.matrix.rows_times(x)[1])
    for row, one in ((0, ones[0]), (2, ones[2])):
        torch.testing.assert_close(found[row], reference(linear, x[row : row + 1], one)[0])
