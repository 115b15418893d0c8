"""Windows in blocks against the softmax written out."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.attention.packed import PrefillAttention, attend_dense, causal_mask
from tinkex.engine.attention.windows import pays_in_blocks

HEADS, KV, DIM, SCALING = 4, 2, 8, 0.3
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])


def packed(count, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(count, h, DIM, generator=g, dtype=dtype) for h in (HEADS, KV, KV)]


def masked(query, key, value, window, sinks=None):
    """One sequence [N, heads, dim] under one mask."""
    mask = causal_mask(0, len(query), 0, window, query.device)
    folded = (x.transpose(0, 1)[None] for x in (query, key, value))
    return attend_dense(*folded, mask=mask, scaling=SCALING, sinks=sinks)[0].transpose(0, 1)


def test_blocks_are_for_sequences_longer_than_two_windows():
    assert not pays_in_blocks(1000, 0)
    assert not pays_in_blocks(128, 6)
    assert pays_in_blocks(129, 6)
    assert not pays_in_blocks(400, 200)
    assert pays_in_blocks(401, 200)


@pytest.mark.parametrize("sinks", [None, SINKS])
@pytest.mark.parametrize("window", [1, 6, 64, 65, 100])
@pytest.mark.parametrize("length", [129, 192, 193, 300])
def test_blocks_equal_one_mask(length, window, sinks):
    query, key, value = packed(2 * length)
    found = PrefillAttention((length, length)).attend(
        0, query, key, value, scaling=SCALING, window=window, sinks=sinks
    )
    parts = zip(*(x.split(length) for x in (query, key, value)), strict=True)
    expected = torch.cat([masked(*part, window, sinks) for part in parts])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [None, SINKS.double()])
def test_gradients_equal_those_of_one_mask_in_double_precision(sinks):
    tensors = packed(200, torch.float64)
    slope = torch.randn(200, HEADS, DIM, dtype=torch.float64)

    def gradients(attend):
        leaves = [x.clone().requires_grad_() for x in tensors]
        return torch.autograd.grad(attend(*leaves), leaves, slope)

    def ours(q, k, v):
        attention = PrefillAttention((200,))
        return attention.attend(0, q, k, v, scaling=SCALING, window=70, sinks=sinks)

    expected = gradients(lambda q, k, v: masked(q, k, v, 70, sinks))
    for one, other in zip(gradients(ours), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_sequence_has_the_same_bits_alone():
    query, key, value = packed(450)
    options = {"scaling": SCALING, "window": 10}
    together = PrefillAttention((150, 150, 150)).attend(0, query, key, value, **options)
    at = slice(150, 300)
    alone = PrefillAttention((150,)).attend(0, query[at], key[at], value[at], **options)
    assert torch.equal(together[at], alone)
