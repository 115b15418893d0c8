"""The training product against autograd, and its gradients against those of a run alone."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.lora.training import training_product
from tinkex.engine.lora.weights import LoraGroup, LoraSegment, LoraShape, initial_weights
from tinkex.engine.matrices.matrix import Matrix, can_pack
from tinkex.engine.matrices.products import Products

CPU = torch.device("cpu")
SHAPES = (LoraShape("q", 24, 40), LoraShape("k", 24, 16))
GROUP = LoraGroup.of(*SHAPES)
PRODUCTS = Products(onednn=can_pack())


def adapter(seed, rank=8, shapes=SHAPES, scale=0.1):
    weights = initial_weights(shapes, rank, 32.0, seed, CPU)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights.flat.add_(torch.randn(weights.flat.shape, generator=generator) * scale)
    return weights


def gradient_of(weights):
    return weights.over(torch.zeros_like(weights.flat))


def matrix(rows_in=24, rows_out=56, packed=False):
    torch.manual_seed(0)
    return Matrix(torch.randn(rows_out, rows_in), packed=packed)


def run(x, segments, base, group=GROUP):
    anchor = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        return training_product(x, anchor, base, group, segments, PRODUCTS), anchor


def reference(x, base, group, weights):
    """The formula, in double precision: W x + scale B A x of each layer."""
    out = x.double() @ base.dense().double().T
    for name in group.names_of(weights):
        pair = weights.pairs[name]
        delta = x.double() @ pair.a.double().T @ pair.b.double().T
        columns = group.columns[name]
        out = torch.cat(
            [
                out[:, : columns.start],
                out[:, columns] + weights.scale * delta,
                out[:, columns.stop :],
            ],
            dim=1,
        )
    return out


@pytest.mark.parametrize("covered", [SHAPES, SHAPES[:1], SHAPES[1:]])
def test_product_and_gradients_equal_autograd_in_double(covered):
    base = matrix()
    ones = (adapter(0, rank=4, shapes=covered), adapter(1, rank=16))
    x = torch.randn(12, 24, requires_grad=True)
    segments = [
        LoraSegment(0, 8, ones[0], gradient_of(ones[0])),
        LoraSegment(8, 12, ones[1], gradient_of(ones[1])),
    ]
    slope = torch.randn(12, 56)
    found, _ = run(x, segments, base)
    (dx,) = torch.autograd.grad(found, x, slope)
    expected = torch.cat([reference(x[s.start : s.end], base, GROUP, s.weights) for s in segments])
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    leaves = [x, *ones[0].parameters, *ones[1].parameters]
    want = torch.autograd.grad((expected * slope).sum(), leaves)
    got = [dx, *segments[0].gradient.parameters, *segments[1].gradient.parameters]
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_input_without_gradient_still_gives_those_of_the_factors():
    base, one = matrix(), adapter(0)
    segment = LoraSegment(0, 8, one, gradient_of(one))
    found, anchor = run(torch.randn(8, 24), [segment], base)
    torch.autograd.grad(found.sum(), anchor, allow_unused=True)
    assert all(bool(g.abs().sum() > 0) for g in segment.gradient.parameters)


def test_gradients_are_added_to_what_is_there():
    base, one = matrix(), adapter(0)
    x = torch.randn(8, 24)
    once, twice = gradient_of(one), gradient_of(one)
    for gradient, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            found, anchor = run(x, [LoraSegment(0, 8, one, gradient)], base)
            torch.autograd.grad(found.sum(), anchor, allow_unused=True)
    torch.testing.assert_close(twice.flat, 2 * once.flat)


def test_without_an_adapter_of_the_group_nothing_hangs_on_the_anchor():
    other = adapter(0, shapes=(LoraShape("elsewhere", 24, 40),))
    found, _ = run(torch.randn(8, 24), [LoraSegment(0, 8, other, None)], matrix())
    assert not found.requires_grad


@pytest.mark.parametrize("count", [4, 64, 512])
def test_no_bit_of_a_gradient_tells_of_the_others(count):
    """Sizes on both sides of the border between the two libraries."""
    shapes = (LoraShape("q", 256, 256), LoraShape("k", 256, 128))
    group = LoraGroup.of(*shapes)
    base = matrix(256, 384, packed=can_pack())
    ones = [adapter(seed, rank=16, shapes=shapes) for seed in range(3)]
    x, slope = torch.randn(3 * count, 256), torch.randn(3 * count, 384)
    segments = [
        LoraSegment(i * count, (i + 1) * count, one, gradient_of(one)) for i, one in enumerate(ones)
    ]
    together = x.clone().requires_grad_()
    found, _ = run(together, segments, base, group)
    (dx,) = torch.autograd.grad(found, together, slope)
    at = slice(count, 2 * count)
    alone = x[at].clone().requires_grad_()
    mine = LoraSegment(0, count, ones[1], gradient_of(ones[1]))
    own, _ = run(alone, [mine], base, group)
    (own_dx,) = torch.autograd.grad(own, alone, slope[at])
    assert torch.equal(found[at], own)
    assert torch.equal(dx[at], own_dx)
    assert torch.equal(segments[1].gradient.flat, mine.gradient.flat)
