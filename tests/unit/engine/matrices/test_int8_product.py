"""Products in int8: as exact as float32, the same bits in any company, and never silently wrong."""

import pytest
import torch

from tinkex.engine.matrices import int8_product
from tinkex.engine.matrices.int8_product import Int8Product, can_multiply_int8

pytestmark = pytest.mark.skipif(not can_multiply_int8(), reason="no exact int8 product here")
SHAPES = [(40, 24), (24, 40), (17, 33), (1000, 48), (64, 130)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parts(shape, seed=0):
    values = torch.randint(-127, 128, shape, generator=generator(seed), dtype=torch.int8)
    return values, torch.rand(shape[0], generator=generator(seed + 1)) + 0.01


def rows(count, width, seed=2):
    return torch.randn(count, width, generator=generator(seed))


def exact(x, values, scales):
    return x.double() @ values.double().t() * scales.double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3, 64])
def test_product_is_as_exact_as_float32(shape, count):
    values, scales = parts(shape)
    x = rows(count, shape[1])
    x[0] *= 1e-3
    wanted = exact(x, values, scales)
    found = Int8Product(values, scales)(x)
    size = x.double().norm(dim=1, keepdim=True) * values.double().norm(dim=1) * scales
    assert ((found - wanted).abs() / size).max() < 2e-7
    assert torch.equal(Int8Product(values, scales).values(), values)


@pytest.mark.parametrize("shape", SHAPES)
def test_row_has_the_same_bits_in_any_company(shape):
    product = Int8Product(*parts(shape))
    x = rows(65, shape[1])
    whole = product(x)
    for count in (1, 2, 5, 32):
        for start in range(0, 65 - count, 7):
            at = slice(start, start + count)
            assert torch.equal(product(x[at]), whole[at])


def test_bits_do_not_depend_on_how_the_work_is_cut(monkeypatch):
    values, scales = parts((48, 40))
    x = rows(30, 40)
    inputs = torch.rand(40, generator=generator(9))
    whole = Int8Product(values, scales, inputs)(x)
    assert torch.equal(Int8Product(values, scales)(x * inputs), whole)
    for name in ("_BLOCK_ELEMENTS", "_STACKED_ELEMENTS", "_SPLIT_ELEMENTS", "_FEW_ELEMENTS"):
        monkeypatch.setattr(int8_product, name, 64)
        assert torch.equal(Int8Product(values, scales, inputs)(x), whole)


def test_bits_do_not_depend_on_the_number_of_threads():
    product = Int8Product(*parts((200, 500)))
    x = rows(37, 500)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(product(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_wide_rows_keep_small_values_beside_a_large_one():
    width = 70_000  # more than one integer product may sum
    values, scales = parts((8, width))
    x = torch.full((2, width), 1.0 / width)
    x[:, 3] -= 1
    wanted = exact(x, values, scales)
    found = Int8Product(values, scales)(x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_largest_values_do_not_overflow():
    values = torch.full((16, 65_536), 127, dtype=torch.int8)
    x = torch.full((4, 65_536), 3.0)
    found = Int8Product(values, torch.ones(16))(x)
    torch.testing.assert_close(found, torch.full((4, 16), 3.0 * 127 * 65_536))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_value_that_is_not_finite_spoils_its_own_row_alone(value):
    product = Int8Product(*parts((24, 40)))
    x = rows(4, 40)
    before = product(x)
    x[1, 5] = value
    found = product(x)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2, 3]], before[[0, 2, 3]])


def test_zeros_and_the_smallest_numbers_give_zero_or_nearly():
    product = Int8Product(*parts((24, 40)))
    assert torch.equal(product(torch.zeros(2, 40)), torch.zeros(2, 24))
    assert product(torch.zeros(0, 40)).shape == (0, 24)
    assert product(torch.full((2, 40), 1e-40)).abs().max() < 1e-30


def test_processor_that_multiplies_otherwise_is_noticed(monkeypatch):
    honest = Int8Product._product

    def saturating(self, digits, packed, scale, onto):
        return honest(self, digits, packed, scale, onto).clamp_(-32768, 32767)

    monkeypatch.setattr(Int8Product, "_product", saturating)
    assert not can_multiply_int8.__wrapped__()


def test_torch_without_the_operators_is_noticed(monkeypatch):
    def missing(self, values, scales):
        raise AttributeError("'_OpNamespace' object has no attribute 'qlinear_prepack'")

    monkeypatch.setattr(Int8Product, "__init__", missing)
    assert not can_multiply_int8.__wrapped__()
