"""The chunked head against full logits and autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tinkex.engine.lora.weights import UNEMBED, LoraSegment, LoraShape, initial_weights
from tinkex.engine.matrices.matrix import Matrix
from tinkex.engine.matrices.products import Products
from tinkex.engine.models.head import MIN_CHUNK_ROWS, Head, HeadPart
from tinkex.errors import InputError

N, C, V, R = 300, 16, 53, 4


def adapter(covers=UNEMBED):
    weights = initial_weights([LoraShape(covers, C, V)], R, 32.0, 0, torch.device("cpu"))
    with torch.no_grad():
        weights.flat.add_(torch.randn(weights.flat.shape) * 0.1)
    return weights


def head(chunk_elements=1, bias=False, **options):
    torch.manual_seed(0)
    weight = torch.randn(V, C) * 0.3
    return Head(
        Matrix(weight, torch.randn(V) if bias else None, packed=options.get("packed", False)),
        Products(onednn=False),
        chunk_elements=chunk_elements,
        row_multiple=options.get("row_multiple", 4),
    )


def part_of(targets, weights, gradient_of, start=0):
    gradient = weights.over(torch.zeros_like(weights.flat))
    return HeadPart(start, targets, weights, gradient, gradient_of)


def full_logprobs(h, hidden, targets, weights):
    z = F.linear(hidden, h.matrix.dense(), h.matrix.bias)
    pair = weights.pairs.get(UNEMBED)
    if pair is not None:
        z = z + weights.scale * (hidden @ pair.a.T) @ pair.b.T
    return z.log_softmax(-1).gather(1, targets)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("covers", [UNEMBED, "other"])
def test_logprobs_and_gradients_equal_full_logits(bias, width, covers):
    torch.manual_seed(1)
    h, weights = head(bias=bias), adapter(covers)
    hidden = torch.randn(N, C, requires_grad=True)
    targets = torch.randint(0, V, (N, width))
    slope = torch.randn(N, width)
    slope[: N // 2] = 0  # the chunk of these rows costs nothing, the next is gathered
    part = part_of(targets, weights, lambda rows, lp: slope[rows])
    d_hidden = h.backward(hidden.detach(), [part])
    expected = full_logprobs(h, hidden, targets, weights)
    (expected * slope).sum().backward()
    torch.testing.assert_close(part.logprobs, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(d_hidden, hidden.grad, rtol=1e-4, atol=1e-5)
    if covers == UNEMBED:
        pair = weights.pairs[UNEMBED]
        found = part.gradient.pairs[UNEMBED]
        torch.testing.assert_close(found.a, pair.a.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.b, pair.b.grad, rtol=1e-4, atol=1e-4)
    else:
        assert not part.gradient.flat.any()


def test_chunk_size_changes_nothing():
    weights = adapter()
    hidden, targets = torch.randn(N, C), torch.randint(0, V, (N, 1))
    results = []
    for size in (1, 200 * V, 1000 * V):
        part = part_of(targets, weights, lambda rows, lp: -torch.ones_like(lp))
        results.append((head(chunk_elements=size).backward(hidden, [part]), part))
    for d_hidden, part in results[1:]:
        torch.testing.assert_close(results[0][1].logprobs, part.logprobs, rtol=0, atol=1e-6)
        torch.testing.assert_close(results[0][0], d_hidden, rtol=0, atol=1e-6)
        found, first = part.gradient.flat, results[0][1].gradient.flat
        torch.testing.assert_close(found, first, rtol=1e-5, atol=1e-5)


def test_loss_is_asked_once_for_each_slice_in_order():
    asked = []

    def gradient_of(rows, logprobs):
        asked.append((rows.start, logprobs.shape[0]))
        return torch.zeros_like(logprobs)

    part = part_of(torch.zeros(N, 1, dtype=torch.long), adapter(), gradient_of)
    head().backward(torch.randn(N, C), [part])
    assert asked == [(0, MIN_CHUNK_ROWS), (128, MIN_CHUNK_ROWS), (256, N - 256)]


def test_forward_only_logprobs_equal_those_with_gradients():
    h, weights = head(), adapter()
    hidden, targets = torch.randn(N, C), torch.randint(0, V, (N, 1))
    part = part_of(targets, weights, lambda rows, lp: torch.zeros_like(lp))
    h.backward(hidden, [part])
    assert torch.equal(h.logprobs(hidden, targets, weights), part.logprobs)


@pytest.mark.parametrize("counts", [(5, 70, 300, 1), (130, 130), (128, 3)])
@pytest.mark.parametrize("live", [0.0, 0.5, 1.0])
def test_no_bit_of_a_run_tells_of_the_others(counts, live):
    h = head()
    ones = [adapter() for _ in counts]
    generator = torch.Generator().manual_seed(0)
    starts, total = [], 0
    for count in counts:  # with filler rows between, as the trainer lays them out
        starts.append(total)
        total += count + -count % 4
    hidden = torch.randn(total, C, generator=generator)
    parts, slopes = [], []
    for count, start, one in zip(counts, starts, ones, strict=True):
        targets = torch.randint(0, V, (count, 1), generator=generator)
        slope = torch.randn(count, 1, generator=generator)
        slope[torch.rand(count, 1, generator=generator) >= live] = 0
        slopes.append(slope)
        parts.append(part_of(targets, one, lambda rows, lp, s=slope: s[rows], start))
    together = h.backward(hidden, parts)
    for part, slope, count in zip(parts, slopes, counts, strict=True):
        own = part_of(part.targets, part.weights, lambda rows, lp, s=slope: s[rows])
        at = slice(part.start, part.start + count)
        assert torch.equal(h.backward(hidden[at], [own]), together[at])
        assert torch.equal(own.logprobs, part.logprobs)
        assert torch.equal(own.gradient.flat, part.gradient.flat)


def test_run_whose_loss_fails_has_no_gradient_and_harms_no_other():
    h, weights = head(), adapter()
    hidden, targets = torch.randn(8, C), torch.randint(0, V, (4, 1))

    def fails(rows, logprobs):
        raise InputError("too much")

    good = part_of(targets, weights, lambda rows, lp: torch.ones_like(lp), start=4)
    bad = part_of(targets, adapter(), fails)
    together = h.backward(hidden, [bad, good])
    assert isinstance(bad.failure, InputError)
    assert not together[:4].any()
    assert not bad.gradient.flat.any()
    alone = part_of(targets, weights, lambda rows, lp: torch.ones_like(lp))
    assert torch.equal(h.backward(hidden[4:], [alone]), together[4:])
    assert torch.equal(alone.gradient.flat, good.gradient.flat)


def test_topk_logprobs_are_the_largest_in_order():
    h, weights = head(), adapter()
    hidden = torch.randn(N, C)
    values, ids = h.topk_logprobs(hidden, 5, weights)
    every = torch.cat(
        [full_logprobs(h, hidden, torch.full((N, 1), t), weights) for t in range(V)], dim=1
    ).detach()
    expected, places = every.topk(5)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(ids, places)


def test_row_of_logits_has_the_same_bits_in_any_batch():
    h, weights = head(), adapter()
    hidden = torch.randn(9, C)
    together = h.logits(hidden, [LoraSegment(0, 9, weights)])
    for i in range(9):
        alone = h.logits(hidden[i : i + 1], [LoraSegment(0, 1, weights)])
        assert torch.equal(alone[0], together[i])
