"""Rows of the cache through their lives, and decode against prefill."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.attention.chunks import ChunkAttention, RowSpan
from tinkex.engine.attention.kv_cache import DecodeAttention, KVCache
from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.attention.size_classes import row_capacity

HEADS, KV, DIM, LAYERS = 4, 2, 8, 2
CPU = torch.device("cpu")


def packed(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, h, DIM, generator=g) for h in (HEADS, KV, KV))


def prefill(cache, lengths, seed=0):
    """Fill a row for each length; gives the rows and what was written."""
    rows = [cache.allocate(n) for n in lengths]
    query, key, value = packed(sum(lengths), seed)
    spans = [RowSpan(row, 0, n) for row, n in zip(rows, lengths, strict=True)]
    attention = ChunkAttention(spans, block_tokens=1024)
    for layer in range(LAYERS):
        attention.attend(layer, query, key, value, scaling=0.3, window=0)
    return rows, list(zip(key.split(lengths), value.split(lengths), strict=True))


def decode(rows, query, key, value, window=0):
    attention = DecodeAttention(rows, CPU)
    outs = [
        attention.attend(i, query, key, value, scaling=0.3, window=window) for i in range(LAYERS)
    ]
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0, equal_nan=True)
    return outs[0]


def expected(past, query, key, value, window=0):
    """The last row of a prefill over the past and the new token."""
    keys, values = torch.cat([past[0], key[None]]), torch.cat([past[1], value[None]])
    queries = torch.zeros(len(keys), HEADS, DIM)
    queries[-1] = query
    attention = PrefillAttention((len(keys),))
    return attention.attend(0, queries, keys, values, scaling=0.3, window=window)[-1]


@pytest.mark.parametrize(
    ("tokens", "capacity"), [(1, 64), (64, 64), (65, 128), (128, 128), (1000, 1024)]
)
def test_row_capacity_is_a_power_of_two(tokens, capacity):
    assert row_capacity(tokens) == capacity


@pytest.mark.parametrize("window", [0, 4])
def test_decode_equals_the_last_row_of_a_prefill(window):
    cache = KVCache()
    rows, past = prefill(cache, (5, 63, 64, 90))
    rows = [cache.make_room(row) for row in rows]
    query, key, value = packed(len(rows) + 3, seed=1)
    out = decode(rows, query, key, value, window)
    for i, row in enumerate(rows):
        want = expected(past[i], query[i], key[i], value[i], window)
        torch.testing.assert_close(out[i], want, rtol=1e-5, atol=1e-5)
        assert row.length == len(past[i][0]) + 1
    assert out[len(rows) :].abs().max() == 0


def test_row_has_the_same_bits_alone():
    query, key, value = packed(4, seed=1)
    together_cache, alone_cache = KVCache(), KVCache()
    rows, past = prefill(together_cache, (5, 40, 90, 7))
    together = decode(rows, query, key, value)
    row = alone_cache.allocate(40)
    attention = ChunkAttention([RowSpan(row, 0, 40)], block_tokens=1024)
    for layer in range(LAYERS):
        attention.attend(layer, packed(40)[0], *past[1], scaling=0.3, window=0)
    alone = decode([row], query[1:2], key[1:2], value[1:2])
    assert torch.equal(alone[0], together[1])


def test_waiting_rows_do_not_disturb_running_ones():
    cache = KVCache()
    rows, past = prefill(cache, (5, 6, 7))
    query, key, value = packed(1, seed=1)
    out = decode([rows[2]], query, key, value)
    want = expected(past[2], query[0], key[0], value[0])
    torch.testing.assert_close(out[0], want, rtol=1e-5, atol=1e-5)
    assert (rows[0].length, rows[1].length) == (5, 6)


def test_freeing_moves_the_last_row_into_the_hole():
    cache = KVCache()
    rows, past = prefill(cache, (5, 6, 7))
    cache.free(rows[0])
    query, key, value = packed(2, seed=1)
    out = decode(rows[1:], query, key, value)
    for i in (1, 2):
        want = expected(past[i], query[i - 1], key[i - 1], value[i - 1])
        torch.testing.assert_close(out[i - 1], want, rtol=1e-5, atol=1e-5)
    assert cache.open_rows == 2


def test_fork_is_a_copy():
    cache = KVCache()
    rows, past = prefill(cache, (5,))
    fork = cache.fork(rows[0])
    query, key, value = packed(2, seed=1)
    first = decode([rows[0]], query[:1], key[:1], value[:1])
    second = decode([fork], query[1:], key[1:], value[1:])
    for i, out in enumerate((first, second)):
        want = expected(past[0], query[i], key[i], value[i])
        torch.testing.assert_close(out[0], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("victim", [0, 1])
def test_scrubbed_row_leaves_no_nan_to_its_successor(victim):
    cache = KVCache()
    rows, _ = prefill(cache, (5, 6))
    poison = torch.full((1, KV, DIM), torch.nan)
    decode([rows[victim]], packed(1)[0], poison, poison)
    cache.free(rows[victim], scrub=True)
    other, past = prefill(cache, (3,), seed=2)
    query, key, value = packed(1, seed=1)
    out = decode(other, query, key, value)
    want = expected(past[0], query[0], key[0], value[0])
    torch.testing.assert_close(out[0], want, rtol=1e-5, atol=1e-5)


def test_emptied_cache_is_used_again():
    cache = KVCache()
    rows, _ = prefill(cache, (5, 70))
    for row in rows:
        cache.free(row)
    assert cache.open_rows == 0
    rows, past = prefill(cache, (300, 5))
    query, key, value = packed(2, seed=1)
    out = decode(rows, query, key, value)
    want = expected(past[0], query[0], key[0], value[0])
    torch.testing.assert_close(out[0], want, rtol=1e-5, atol=1e-5)


def test_storage_of_a_size_that_was_busy_is_given_back_when_another_is():
    cache = KVCache()
    budget = 2048
    for _ in range(2):  # the second time each size has been seen
        for size in (64, 128, 256, 512):
            rows, _ = prefill(cache, (size,) * (budget // size))
            assert cache.allocated_tokens <= 2 * budget
            for row in rows:
                cache.free(row)


def test_storage_of_which_little_is_used_shrinks_and_keeps_what_is_in_it():
    cache = KVCache()
    rows, past = prefill(cache, (9,) * 32)
    for row in rows:
        if row is not rows[20]:
            cache.free(row)
    prefill(cache, (100, 100, 100), seed=1)
    assert cache.allocated_tokens == 2 * 64 + 4 * 128
    prefill(cache, (9,) * 5, seed=2)
    query, key, value = packed(1, seed=3)
    out = decode([rows[20]], query, key, value)
    torch.testing.assert_close(
        out[0], expected(past[20], query[0], key[0], value[0]), rtol=1e-5, atol=1e-5
    )
