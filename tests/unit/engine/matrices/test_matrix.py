"""Packed products: equal to the plain ones, differentiable, and the same bits in any company."""

import pytest
import torch
from engine_support import losses_and_tokens, tiny_engine

from tinkex.engine.matrices.matrix import Matrix, can_pack, room_to_pack

needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no packed products")
SHAPES = [(40, 24), (24, 40), (128, 64), (1000, 48)]


def matrix(shape, *, packed, bias=True):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=g)
    return Matrix(weight, torch.randn(shape[0], generator=g) if bias else None, packed=packed)


def rows(count, width, seed=1):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 4, 7, 64, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_its_gradient_equal_the_exact_ones(shape, count, bias):
    one, plain = (matrix(shape, packed=packed, bias=bias) for packed in (True, False))
    x = rows(count, shape[1]).requires_grad_()
    exact = x.detach().double().requires_grad_()
    found = one.rows_times(x)
    offset = 0 if one.bias is None else one.bias.double()
    expected = exact @ plain.dense().double().t() + offset
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    g = rows(count, shape[0], seed=2)
    found.backward(g)
    expected.backward(g.double())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(one.times(g), x.grad, rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(one.rows_times(x), found)


@needs_packing
@pytest.mark.parametrize("shape", SHAPES)
def test_row_has_the_same_bits_in_any_company(shape):
    one = matrix(shape, packed=True)
    x, g = rows(64, shape[1]), rows(64, shape[0], seed=2)
    whole, back = one.rows_times(x), one.times(g)
    for count in (4, 8, 12, 20, 32, 60):
        for start in range(0, 64 - count + 1, 4):
            at = slice(start, start + count)
            assert torch.equal(one.rows_times(x[at]), whole[at])
            assert torch.equal(one.times(g[at]), back[at])


@needs_packing
def test_dense_form_comes_back_exactly():
    for shape in SHAPES:
        packed, plain = matrix(shape, packed=True), matrix(shape, packed=False)
        assert torch.equal(packed.dense(), plain.dense())


@needs_packing
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
def test_engine_gives_the_same_with_packed_weights_and_without(family):
    results = []
    for pack in (True, False):
        engine = tiny_engine(family, pack_weights=pack)
        assert engine.numerics()["products"] == ("onednn packed" if pack else "torch")
        results.append(losses_and_tokens(engine))
    (packed, plain) = results
    assert packed[0] == pytest.approx(plain[0], rel=1e-4)
    assert packed[1] == plain[1]


def test_packing_leaves_half_of_the_memory_free(monkeypatch):
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert room_to_pack(4096 * 199)
    assert not room_to_pack(4096 * 201)

    def unknown(_):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("os.sysconf", unknown)
    assert room_to_pack(2**29)
    assert not room_to_pack(2**31)


@needs_packing
def test_small_model_is_packed_unless_told_otherwise():
    assert tiny_engine().numerics()["products"] == "onednn packed"
