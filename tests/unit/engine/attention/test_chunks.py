"""Chunks of prompts over what came before them: block by block, whatever the chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tinkex.engine.attention.chunks import ChunkAttention, RowSpan
from tinkex.engine.attention.kv_cache import KVCache
from tinkex.engine.attention.packed import PrefillAttention

HEADS, KV, DIM, BLOCK = 4, 2, 8, 16
SINKS = torch.linspace(-1, 1, HEADS)


def packed(count, *, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, h, DIM, generator=g) for h in (HEADS, KV, KV))


def attend(spans, tensors, **options):
    options = {"scaling": 0.3, "window": 0, **options}
    return ChunkAttention(spans, BLOCK).attend(0, *tensors, **options)


def in_chunks(tensors, borders, **options):
    """Attend with one prompt in chunks; gives the outputs and the row."""
    row = KVCache().allocate(borders[-1])
    parts = [
        attend([RowSpan(row, a, b)], [t[a:b] for t in tensors], **options)
        for a, b in pairwise(borders)
    ]
    return torch.cat(parts), row


@pytest.mark.parametrize("sinks", [None, SINKS])
@pytest.mark.parametrize("window", [0, 1, 6, 16, 40])
@pytest.mark.parametrize("length", [1, 16, 17, 70])
def test_prompt_in_blocks_equals_the_whole(length, window, sinks):
    tensors = packed(length)
    options = {"scaling": 0.3, "window": window, "sinks": sinks}
    found, _ = in_chunks(tensors, [0, length], **options)
    expected = PrefillAttention((length,)).attend(0, *tensors, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 6, 20])
@pytest.mark.parametrize("sinks", [None, SINKS])
@pytest.mark.parametrize("borders", [[0, 16, 70], [0, 48, 64, 70], [0, 16, 32, 48, 64, 70]])
def test_chunks_change_no_bit(borders, window, sinks):
    tensors = packed(70)
    whole, _ = in_chunks(tensors, [0, 70], window=window, sinks=sinks)
    found, row = in_chunks(tensors, borders, window=window, sinks=sinks)
    assert torch.equal(found, whole)
    assert row.length == 70


def test_prompts_packed_together_have_the_bits_of_each_alone_and_filler_attends_to_nothing():
    cache = KVCache()
    lengths = (16, 16, 40, 5, 5, 100)
    each = [packed(n, seed=i) for i, n in enumerate(lengths)]
    together = [torch.cat(part) for part in zip(*each, packed(2, seed=9), strict=True)]
    spans = [RowSpan(cache.allocate(n), 0, n) for n in lengths]
    out = attend(spans, together)
    for part, tensors, n in zip(out[:-2].split(lengths), each, lengths, strict=True):
        assert torch.equal(part, in_chunks(tensors, [0, n])[0])
    assert not out[-2:].any()


def test_position_of_the_row_changes_no_bit():
    cache = KVCache()
    tensors = packed(40)
    others = [cache.allocate(40) for _ in range(3)]
    attend([RowSpan(others[1], 0, 40)], packed(40, seed=1))
    row = cache.allocate(100)  # of another class
    for target in (others[2], row):
        first = attend([RowSpan(target, 0, 32)], [t[:32] for t in tensors])
        last = attend([RowSpan(target, 32, 40)], [t[32:] for t in tensors])
        assert torch.equal(torch.cat([first, last]), in_chunks(tensors, [0, 40])[0])
