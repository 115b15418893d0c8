"""The layers with many adapters: each row gets its own, with the bits that it has alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tinkex.engine.lora.linear import LoraLinear, LoraRouting
from tinkex.engine.lora.stack import AdapterStack
from tinkex.engine.lora.weights import LoraGroup, LoraSegment, LoraShape, initial_weights
from tinkex.engine.matrices.matrix import Matrix
from tinkex.engine.matrices.products import Products

CPU = torch.device("cpu")
SHAPE = LoraShape("layer", 24, 40)
PRODUCTS = Products(onednn=False)


def adapter(seed, rank=8, shapes=(SHAPE,)):
    weights = initial_weights(shapes, rank, 32.0, seed, CPU)
    with torch.no_grad():
        weights.flat.add_(torch.randn(weights.flat.shape) * 0.1)
    return weights


def layer(row_multiple=4):
    routing = LoraRouting(PRODUCTS, row_multiple)
    linear = nn.Linear(24, 40)
    matrix = Matrix(linear.weight.detach(), linear.bias.detach(), packed=False)
    return LoraLinear(matrix, LoraGroup.of(SHAPE), routing), routing


def reference(linear, x, weights):
    pair = weights.pairs["layer"]
    base = nn.functional.linear(x, linear.matrix.dense(), linear.matrix.bias)
    return base + weights.scale * x @ pair.a.T @ pair.b.T


def test_without_rows_the_layer_is_the_frozen_one():
    linear, _ = layer()
    x = torch.randn(1, 5, 24)
    assert torch.equal(
        linear(x), nn.functional.linear(x, linear.matrix.dense(), linear.matrix.bias)
    )


@torch.no_grad()
def test_each_row_gets_its_own_adapter():
    linear, routing = layer()
    a, b = adapter(0, rank=4), adapter(1, rank=16)
    other = adapter(2, shapes=(LoraShape("elsewhere", 24, 40),))
    x = torch.randn(1, 20, 24)
    routing.rows = (
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
    assert torch.equal(y[8:10], plain[8:10])
    assert torch.equal(y[15:], plain[15:])


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 9])
def test_row_has_the_same_bits_whatever_its_company(count):
    linear, routing = layer()
    a, b = adapter(0), adapter(1)
    x = torch.randn(1, 16, 24)
    routing.rows = (LoraSegment(0, count, a), LoraSegment(count, 16, b))
    together = linear(x)[0]
    filler = torch.zeros(1, -count % 4, 24)
    routing.rows = (LoraSegment(0, count + filler.shape[1], a),)
    alone = linear(torch.cat([x[:, :count], filler], dim=1))[0]
    assert torch.equal(together[:count], alone[:count])


@torch.no_grad()
def test_adapter_stays_float32_over_a_bfloat16_base():
    plain, routing = layer()
    half = Matrix(plain.matrix.dense().bfloat16(), plain.matrix.bias.bfloat16(), packed=False)
    linear = LoraLinear(half, LoraGroup.of(SHAPE), routing)
    a = adapter(0)
    x = torch.randn(8, 24)
    for rows in ((LoraSegment(0, 8, a),), AdapterStack(CPU, PRODUCTS, share=True).rows([a] * 8, 8)):
        routing.rows = rows
        y = linear(x.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), reference(plain, x, a), rtol=0.05, atol=0.05)
