"""The chunked head against full logits and autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tinkex.engine.head import MIN_CHUNK_ROWS, Head
from tinkex.engine.lora import UNEMBED, LoraSegment, LoraShape, initial_weights
from tinkex.engine.matrix import Matrix

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
        chunk_elements=chunk_elements,
        row_multiple=options.get("row_multiple", 4),
    )


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
    grads = h.logprobs_and_gradients(
        hidden.detach(), targets, weights, lambda rows, lp: slope[rows]
    )
    expected = full_logprobs(h, hidden, targets, weights)
    (expected * slope).sum().backward()
    torch.testing.assert_close(grads.logprobs, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads.hidden, hidden.grad, rtol=1e-4, atol=1e-5)
    if covers == UNEMBED:
        pair = weights.pairs[UNEMBED]
        torch.testing.assert_close(grads.a, pair.a.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grads.b, pair.b.grad, rtol=1e-4, atol=1e-4)
    else:
        assert grads.a is None


def test_chunk_size_changes_nothing():
    weights = adapter()
    hidden, targets = torch.randn(N, C), torch.randint(0, V, (N, 1))
    results = [
        head(chunk_elements=size).logprobs_and_gradients(
            hidden, targets, weights, lambda rows, lp: -torch.ones_like(lp)
        )
        for size in (1, 200 * V, 1000 * V)
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0].logprobs, other.logprobs, rtol=0, atol=1e-6)
        torch.testing.assert_close(results[0].hidden, other.hidden, rtol=0, atol=1e-6)
        torch.testing.assert_close(results[0].b, other.b, rtol=1e-5, atol=1e-5)


def test_loss_is_asked_once_for_each_chunk_in_order():
    asked = []

    def gradient_of(rows, logprobs):
        asked.append((rows.start, logprobs.shape[0]))
        return torch.zeros_like(logprobs)

    head().logprobs_and_gradients(
        torch.randn(N, C), torch.zeros(N, 1, dtype=torch.long), adapter(), gradient_of
    )
    assert asked == [(0, MIN_CHUNK_ROWS), (128, MIN_CHUNK_ROWS), (256, N - 256)]


def test_forward_only_logprobs_equal_those_with_gradients():
    h, weights = head(), adapter()
    hidden, targets = torch.randn(N, C), torch.randint(0, V, (N, 1))
    both = h.logprobs_and_gradients(hidden, targets, weights, lambda rows, lp: torch.zeros_like(lp))
    assert torch.equal(h.logprobs(hidden, targets, weights), both.logprobs)


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
