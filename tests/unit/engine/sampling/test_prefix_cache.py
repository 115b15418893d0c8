"""Which blocks of prompts are kept, and for how long; rows and copies are stand-ins."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
import torch

from tinkex.engine.attention.kv_cache import KVCache
from tinkex.engine.lora.weights import lora_weights
from tinkex.engine.sampling.prefix_cache import PrefixCache, block_keys

BLOCK = 4


def keys_of(text):
    return block_keys(np.array([ord(c) for c in text], np.int64), BLOCK)


class Prompts:
    """A cache, and prompts computed into rows of their own."""

    def __init__(self, capacity=100):
        self.rows = KVCache()
        self.copied = []
        self.cache = PrefixCache(BLOCK, capacity, self._copy_out)

    def _copy_out(self, row, start, end):
        self.copied.append((start, end))
        return {}

    def compute(self, text, owner="", weights=None):
        row = self.rows.allocate(len(text))
        scope = self.cache.scope(owner, weights)
        for i, key in enumerate(keys_of(text)):
            start = i * BLOCK
            self.cache.add(scope, key, (start, min(start + BLOCK, len(text))), row)
        return row

    def found(self, text, owner="", weights=None):
        """Tokens of a prompt that the cache has."""
        scope = self.cache.scope(owner, weights)
        found = []
        for key in keys_of(text):
            if key not in scope.blocks:
                break
            found.append(scope.blocks[key])
        self.cache.touch(found)
        return found[-1].end if found else 0


def weights():
    return lora_weights(torch.zeros(0), (), 1, 1.0, trainable=False)


def test_block_is_known_by_everything_before_it():
    one, other = keys_of("aaaabbbbcc"), keys_of("aaaaBbbbcc")
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] != other[2]
    assert keys_of("aaaabbbb") == one[:2]
    assert keys_of("aaaabbbbc")[2] != one[2]


def test_block_lies_in_a_living_row_and_is_copied_when_the_last_ends():
    p = Prompts()
    first, second = p.compute("aaaabb"), p.compute("aaaabb")
    p.cache.release(first, 100)
    assert p.copied == []
    assert p.found("aaaabb") == 6
    p.cache.release(second, 100)
    assert p.copied == [(0, 4), (4, 6)]
    assert p.cache.copied_tokens == 6
    assert p.found("aaaabbcc") == 4
    assert p.found("aaaabb", owner="other") == 0


def test_what_has_a_copy_is_not_copied_again():
    p = Prompts()
    p.cache.release(p.compute("aaaabb"), 100)
    p.cache.release(p.compute("aaaacc"), 100)
    assert p.copied == [(0, 4), (4, 6), (4, 6)]
    assert p.cache.copied_tokens == 8


def test_block_not_used_for_longest_goes_first():
    p = Prompts(capacity=8)
    p.cache.release(p.compute("aaaa"), 100)
    p.cache.release(p.compute("bbbb"), 100)
    assert p.found("aaaa") == 4
    p.cache.release(p.compute("cccc"), 100)
    assert (p.found("aaaa"), p.found("bbbb"), p.found("cccc")) == (4, 0, 4)


def test_end_of_a_prompt_goes_before_its_beginning():
    p = Prompts(capacity=12)
    p.cache.release(p.compute("aaaabbbbcccc"), 100)
    p.cache.release(p.compute("dddd"), 100)
    assert p.found("aaaabbbbcccc") == 8
    assert p.cache.copied_tokens == 12


@pytest.mark.parametrize(("capacity", "room"), [(9, 100), (100, 9)])
def test_beginning_is_kept_of_what_does_not_fit(capacity, room):
    p = Prompts(capacity)
    p.cache.release(p.compute("aaaabbbbcccc"), room)
    assert p.found("aaaabbbbcccc") == 8
    assert p.cache.copied_tokens == 8


def test_copies_make_room_for_what_runs_but_living_rows_still_serve():
    p = Prompts()
    p.cache.release(p.compute("aaaabbbb"), 100)
    row = p.compute("aaaa")
    p.cache.shrink(0)
    assert p.cache.copied_tokens == 0
    assert p.found("aaaabbbb") == 4
    p.cache.release(row, 0)
    assert p.found("aaaa") == 0
    assert not p.cache._scopes


def test_nothing_of_a_spoiled_row_alone_is_kept():
    p = Prompts()
    p.cache.release(p.compute("aaaa"), 100)
    spoiled = p.compute("aaaabbbb")
    p.cache.release(spoiled, 100, spoiled=True)
    assert p.found("aaaabbbb") == 4
    assert p.copied == [(0, 4)]


def test_weights_are_not_kept_alive_and_their_blocks_go_with_them():
    p = Prompts()
    one, other = weights(), weights()
    p.cache.release(p.compute("aaaa", weights=one), 100)
    p.cache.release(p.compute("aaaa", weights=other), 100)
    p.cache.release(p.compute("aaaa"), 100)
    del one
    gc.collect()
    p.cache.sweep()
    assert p.cache.copied_tokens == 8
    assert p.found("aaaa", weights=other) == 4


def test_weights_at_the_address_of_others_find_nothing_of_theirs():
    p = Prompts()
    for _ in range(50):
        made = weights()
        assert p.found("aaaa", weights=made) == 0
        p.cache.release(p.compute("aaaa", weights=made), 100)
        del made
    gc.collect()
    p.cache.sweep()
    assert p.cache.copied_tokens == 0
    assert not p.cache._weights


def test_weights_may_be_dropped_by_another_thread():
    p = Prompts()
    held = [weights()]
    p.cache.release(p.compute("aaaa", weights=held[0]), 100)
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    p.cache.sweep()
    assert p.cache.copied_tokens == 0


def test_counts_stay_right_over_many_prompts():
    p = Prompts(capacity=30)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(500):
        text = "".join(rng.choice(list("ab"), int(rng.integers(1, 18))))
        rows.append(p.compute(text, owner=str(rng.integers(2))))
        if len(rows) > 4:
            p.cache.release(rows.pop(int(rng.integers(len(rows)))), int(rng.integers(40)))
        p.cache.shrink(int(rng.integers(20, 60)))
        copies = p.cache._copies
        assert p.cache.copied_tokens == sum(b.end - b.start for b in copies) <= 30
        assert all(b.copy is not None for b in copies)
    for row in rows:
        p.cache.release(row, 0)
    p.cache.shrink(0)
    assert not p.cache._scopes
    assert not p.cache._held
