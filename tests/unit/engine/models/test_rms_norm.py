"""The norm against torch's: numbers, gradient, and bits that do not tell the number of rows."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.models.rms_norm import RmsNorm

EPS = 1e-6


def plain(x, weight):
    """Torch's own, in float64."""
    x = x.double()
    return torch.nn.functional.rms_norm(x, x.shape[-1:], None, EPS) * weight.double()


def test_equals_torchs_with_its_gradient():
    x = torch.randn(5, 3, 16, requires_grad=True)
    weight = torch.rand(3, 16)
    expected = plain(x, weight).float()
    norm = RmsNorm(weight, EPS)
    found = norm(x)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, x, slope)
    torch.testing.assert_close(torch.autograd.grad(found, x, slope), wanted)
    with torch.no_grad():
        assert torch.equal(norm(x), found), "sampling rounds as training does"


@pytest.mark.parametrize("width", [37, 64, 256, 5120])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rows_bits_do_not_tell_the_number_of_rows(width, threads):
    x = torch.randn(600, width, generator=torch.Generator().manual_seed(width)) * 3
    weight = torch.rand(width)
    norm = RmsNorm(weight, EPS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            whole = norm(x)
            for start, count in ((0, 1), (3, 4), (17, 8), (100, 64), (1, 599)):
                some = norm(x[start : start + count])
                assert torch.equal(some, whole[start : start + count])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(whole, plain(x, weight).float(), rtol=1e-6, atol=1e-6)


def test_heads_that_lie_apart_have_the_bits_of_those_side_by_side():
    qkv = torch.randn(12, 8, 64)
    weight = torch.rand(6, 64)
    norm = RmsNorm(weight, EPS)
    assert torch.equal(norm(qkv[:, :6]), norm(qkv[:, :6].contiguous()))


def test_bfloat16_is_computed_in_float32_and_rounded_before_the_weight():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 32, generator=generator).bfloat16()
    weight = torch.rand(32, generator=generator).bfloat16()
    exact = plain(x, torch.ones(32)).float()
    found = RmsNorm(weight, EPS)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16() * weight)


def test_rows_of_zeros_stay_zeros_and_what_is_not_finite_shows():
    x = torch.zeros(4, 16)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    found = RmsNorm(torch.ones(16), EPS)(x)
    assert torch.equal(found[[0, 3]], torch.zeros(2, 16))
    assert found[1].isnan().all()
    assert not found[2].isfinite().all()
