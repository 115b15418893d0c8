"""Decoding with adapters side by side: right, bit for bit as alone, and no harm to a neighbour."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch

from tinkex.engine.lora.stack import AdapterStack, is_finite, slots_are_neutral
from tinkex.engine.lora.weights import LoraGroup, LoraShape, initial_weights
from tinkex.engine.matrices.matrix import can_pack
from tinkex.engine.matrices.products import Products

CPU = torch.device("cpu")
SHAPES = (LoraShape("q", 24, 40), LoraShape("k", 24, 16))
GROUP = LoraGroup.of(*SHAPES)
WIDE = LoraShape("lm_head", 24, 5000)


def adapter(seed, rank=8, shapes=SHAPES):
    weights = initial_weights(shapes, rank, 32.0, seed, CPU)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights.flat.add_(torch.randn(weights.flat.shape, generator=generator) * 0.1)
    return weights.frozen_copy()


def stack(*, share=None):
    share = slots_are_neutral() if share is None else share
    return AdapterStack(CPU, Products(onednn=can_pack()), share=share)


def lora_of(pages, weights, x, group=GROUP):
    """What a step adds to zeros; filler rows up to a multiple of four."""
    extra = -len(weights) % 4
    rows = torch.cat([x, torch.zeros(extra, x.shape[1])])
    out = torch.zeros(len(rows), group.rows_out)
    pages.rows(weights, len(rows)).add(out, rows, group)
    return out[: len(weights)]


def reference(weights, x, group=GROUP):
    out = torch.zeros(group.rows_out, dtype=torch.float64)
    for name in () if weights is None else group.names_of(weights):
        pair = weights.pairs[name]
        delta = pair.b.double() @ (pair.a.double() @ x.double())
        out[group.columns[name]] = weights.scale * delta
    return out.float()


@pytest.mark.parametrize("group", [GROUP, LoraGroup.of(SHAPES[1]), LoraGroup.of(WIDE)])
@pytest.mark.parametrize("share", [True, False])
def test_each_row_gets_its_own_adapter_of_any_rank_and_coverage(group, share):
    shapes = (*SHAPES, WIDE)
    weights = [
        adapter(0, 8, shapes),
        None,
        adapter(1, 16, shapes),
        adapter(2, 24, shapes),
        adapter(3, 1, SHAPES[:1]),
        adapter(4, 300, shapes),
    ]
    weights += [weights[0], weights[3]]
    x = torch.randn(len(weights), 24)
    found = lora_of(stack(share=share), weights, x, group)
    for row, one in enumerate(weights):
        expected = reference(one, x[row], group)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [GROUP, LoraGroup.of(WIDE)])
def test_row_has_the_bits_that_it_has_alone(group):
    ones = [
        adapter(seed, rank, (*SHAPES, WIDE)) for seed, rank in enumerate((16, 8, 3, 32, 40, 16))
    ]
    x = torch.randn(7, 24)
    pages = stack()
    weights = [*ones, None]
    found = lora_of(pages, weights, x, group)
    for row, one in enumerate(weights):
        assert torch.equal(lora_of(stack(), [one], x[row : row + 1], group)[0], found[row])
    again = lora_of(pages, weights[::-1], x.flip(0), group)
    assert torch.equal(again.flip(0), found)


def test_more_adapters_than_a_page_holds():
    ones = [adapter(seed) for seed in range(40)]
    x = torch.randn(40, 24)
    found = lora_of(stack(), ones, x)
    for row, one in enumerate(ones):
        torch.testing.assert_close(found[row], reference(one, x[row]), rtol=1e-4, atol=1e-4)


def test_places_are_taken_over_from_adapters_that_do_not_run():
    pages = stack()
    x = torch.randn(1, 24)
    ones = [adapter(seed) for seed in range(50)]
    for one in itertools.chain(ones, ones):
        found = lora_of(pages, [one], x)
        torch.testing.assert_close(found[0], reference(one, x[0]), rtol=1e-4, atol=1e-4)
    assert len(pages._pages) == 1


def test_adapter_that_is_gone_is_not_kept_alive():
    pages = stack()
    one = adapter(0)
    lora_of(pages, [one], torch.randn(1, 24))
    held = pages._pages[0]._slots[0]
    assert held() is one
    del one
    gc.collect()
    assert held() is None


def test_pages_of_adapters_that_are_gone_are_given_back():
    pages = stack()
    adapters = [adapter(seed, rank) for seed in range(6) for rank in (8, 20)]
    x = torch.randn(len(adapters), 24)
    lora_of(pages, adapters, x)
    most = len(pages._pages)
    kept = adapters[-1]
    adapters.clear()
    gc.collect()
    lora_of(pages, [kept], x[:1])
    assert sorted(page.units for page in pages._pages) == [1, 2]
    assert most > 2
    del kept
    last = [adapter(9)]
    torch.testing.assert_close(lora_of(pages, last, x[:1])[0], reference(last[0], x[0]))
    assert sorted(page.units for page in pages._pages) == [1, 2]


def test_adapter_that_is_gone_is_not_taken_for_the_base_model():
    pages = stack()
    x = torch.randn(2, 24)
    one, other = adapter(0), adapter(1)
    lora_of(pages, [one, other], x)
    del one
    gc.collect()
    found = lora_of(pages, [None, other], x)
    assert not found[0].any()
    torch.testing.assert_close(found[1], reference(other, x[1]), rtol=1e-4, atol=1e-4)


def test_place_that_a_failure_took_is_not_used_again(monkeypatch):
    pages = stack(share=False)  # one place
    x = torch.randn(1, 24)
    one, other = adapter(0), adapter(1)
    lora_of(pages, [one], x)
    copied = torch.mul

    def fails(*args, **options):
        copied(*args, **options)
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(torch, "mul", fails)
    with pytest.raises(RuntimeError):
        lora_of(pages, [other], x)
    monkeypatch.undo()
    found = lora_of(pages, [one], x)
    torch.testing.assert_close(found[0], reference(one, x[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_adapter_that_diverged_reaches_no_other_row(value):
    bad = adapter(0)
    bad.flat.fill_(value)
    ones = [adapter(1), bad, adapter(2), None]
    x = torch.randn(4, 24)
    found = lora_of(stack(), ones, x)
    assert not found[1].isfinite().any()
    for row in (0, 2, 3):
        alone = lora_of(stack(), [ones[row]], x[row : row + 1])[0]
        assert torch.equal(found[row], alone)


def test_finite_tells_sums_that_overflow_from_values_that_do():
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([1.0, float("inf"), float("-inf")]))
    assert not is_finite(torch.tensor([1.0, float("nan")]))


def test_rows_in_the_order_of_places_are_worked_page_by_page():
    pages = stack(share=True)
    ones = [adapter(seed) for seed in range(6)]
    weights = [None, *ones, *ones]
    x = torch.randn(len(weights), 24)
    lora_of(pages, weights, x)
    order = sorted(range(len(weights)), key=lambda row: pages.place_of(weights[row]))
    found = lora_of(pages, [weights[row] for row in order], x[order])
    parts = pages._latest[2]._parts
    assert [(part.at.start, part.at.stop) for part in parts] == [(0, 12), (8, 16)]
    for place, row in enumerate(order):
        alone = lora_of(stack(), [weights[row]], x[row : row + 1])[0]
        assert torch.equal(found[place], alone)
