"""Matrices in int8: within half a scale of the weights, and one model for every product."""

import pytest
import torch

from tinkex.engine.matrices.int8_product import can_multiply_int8
from tinkex.engine.matrices.quantized import QuantizedMatrix, quantize

SHAPES = [(40, 24), (24, 40), (1000, 48)]
WAYS = [
    pytest.param(
        True, marks=pytest.mark.skipif(not can_multiply_int8(), reason="no exact product here")
    ),
    False,
]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_each_weight_is_within_half_its_channels_scale():
    weight = drawn(30, 50) * torch.logspace(-6, 3, 30)[:, None]
    values, scales = quantize(weight)
    assert values.dtype == torch.int8
    assert values.abs().amax(1).eq(127).all()
    error = (values * scales[:, None] - weight).abs()
    assert (error <= scales[:, None] * 0.5001).all()


def test_channel_of_zeros_stays_zero():
    weight = drawn(4, 8)
    weight[2] = 0
    found = QuantizedMatrix(weight).dense()
    assert found[2].eq(0).all()
    assert found.isfinite().all()


@pytest.mark.parametrize("exact", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_its_gradient_are_those_of_the_quantised_weights(shape, exact, bias):
    offset = drawn(shape[0], seed=1) if bias else None
    one = QuantizedMatrix(drawn(*shape), offset, exact=exact)
    x = drawn(9, shape[1], seed=2).requires_grad_()
    twin = x.detach().double().requires_grad_()
    found = one.rows_times(x)
    wanted = twin @ one.dense().double().t() + (0 if offset is None else offset.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    g = drawn(9, shape[0], seed=3)
    found.backward(g)
    wanted.backward(g.double())
    torch.testing.assert_close(x.grad.double(), twin.grad, rtol=1e-5, atol=1e-4)
    assert torch.equal(one.times(g), x.grad)
    with torch.no_grad():
        assert torch.equal(one.rows_times(x), found)


@pytest.mark.parametrize("exact", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_row_has_the_same_bits_in_any_company(shape, exact):
    one = QuantizedMatrix(drawn(*shape), drawn(shape[0], seed=1), exact=exact)
    x, g = drawn(64, shape[1], seed=2), drawn(64, shape[0], seed=3)
    whole, back = one.rows_times(x), one.times(g)
    assert one.steady_from == (1 if exact else 4)
    for count in (1, 2, 3, 4, 8, 12, 20, 32, 60):
        if count < one.steady_from:
            continue
        for start in range(0, 64 - count + 1, 4):
            at = slice(start, start + count)
            assert torch.equal(one.rows_times(x[at]), whole[at])
            assert torch.equal(one.times(g[at]), back[at])


def test_both_ways_keep_the_same_weights():
    weight = drawn(40, 24)
    dense = [QuantizedMatrix(weight, exact=param).dense() for param in (can_multiply_int8(), False)]
    assert torch.equal(*dense)
