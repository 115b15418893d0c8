"""What is kept of computed prompts, so that a prompt with the same beginning need not compute it.

A prompt is cut into blocks of a fixed number of tokens (the last may be shorter), and a block is
found by everything before and in it, its owner and the adapter's weights: nobody can find, nor
time, what another owner sent. A block lies in the rows of sequences that run, which costs nothing,
and is copied out only when the last of them ends; the copies are bounded and the ones not used for
longest go first. Weights are known by the object that holds them and are not kept alive: their
blocks go when they do.

Owns which blocks there are and where they lie; knows no tensors. Copying is `kv_cache`'s, computing
`prefill`'s.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Any

from tinkex.engine.attempts import attempt
from tinkex.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tinkex.engine.attention.kv_cache import KVCopy, KVRow
    from tinkex.engine.lora.weights import LoraWeights

_KEY_BYTES = 16


def block_keys(prompt: NDArray[np.int64], block_tokens: int) -> list[bytes]:
    """Name each block of a prompt by all tokens up to its end."""
    keys = []
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for start in range(0, len(prompt), block_tokens):
        digest.update(prompt[start : start + block_tokens].tobytes())
        keys.append(digest.digest())
    return keys


class PrefixScope:
    """The blocks of one owner and one set of weights."""

    __slots__ = ("__weakref__", "blocks")

    def __init__(self) -> None:
        self.blocks: dict[bytes, PrefixBlock] = {}


class PrefixBlock:
    """Keys and values of some tokens, known by all tokens before and in it."""

    __slots__ = ("copy", "end", "end_state", "key", "rows", "scope", "start")

    def __init__(self, scope: PrefixScope, key: bytes, start: int, end: int) -> None:
        self.scope = scope
        self.key = key
        self.start = start
        self.end = end
        self.end_state: Any = None
        """[C] the last token's hidden state, for a prompt that ends here."""
        self.rows: dict[KVRow, None] = {}
        """Rows of living sequences that hold it, at the same positions."""
        self.copy: KVCopy | None = None
        """A copy of its own."""


class PrefixCache:
    """All blocks of one engine.

    Args:
        block_tokens: tokens in a block.
        capacity: tokens in copies, at most; 0 keeps and finds nothing.
        copy_out: copies positions (from, to) of a row.
    """

    def __init__(
        self, block_tokens: int, capacity: int, copy_out: Callable[[KVRow, int, int], KVCopy]
    ) -> None:
        self.block_tokens = block_tokens
        self._capacity = capacity
        self._copy_out = copy_out
        self._scopes: weakref.WeakValueDictionary[tuple[str, int | None], PrefixScope]
        self._scopes = weakref.WeakValueDictionary()
        self._held: dict[KVRow, list[PrefixBlock]] = {}
        self._copies: OrderedDict[PrefixBlock, None] = OrderedDict()
        """Blocks with a copy, the one not used for longest first."""
        self._weights: dict[int, weakref.ref[LoraWeights]] = {}
        self._gone: deque[int] = deque()
        """Identities of weights that are gone; filled by whatever thread dropped them."""
        self.copied_tokens = 0
        """Tokens in copies."""

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self._capacity > 0

    def scope(self, owner: str, weights: LoraWeights | None) -> PrefixScope:
        """Give the scope of an owner's prompts on some weights, or on the base model (None)."""
        self.sweep()
        identity = None if weights is None else id(weights)
        if weights is not None and id(weights) not in self._weights:
            gone, here = self._gone, id(weights)
            self._weights[here] = weakref.ref(weights, lambda _ref: gone.append(here))
        found = self._scopes.get((owner, identity))
        if found is None:
            found = self._scopes[owner, identity] = PrefixScope()
        return found

    def sweep(self) -> None:
        """Drop the blocks of weights that are gone."""
        while self._gone:
            identity = self._gone.popleft()
            del self._weights[identity]
            for key, scope in list(self._scopes.items()):
                if key[1] == identity:
                    for block in list(scope.blocks.values()):
                        self._forget(block)

    def hold(self, block: PrefixBlock, row: KVRow) -> None:
        """Note that `row` has the block's keys and values too."""
        if row not in block.rows:
            block.rows[row] = None
            self._held.setdefault(row, []).append(block)

    def add(self, scope: PrefixScope, key: bytes, span: tuple[int, int], row: KVRow) -> PrefixBlock:
        """Note that `row` holds a computed block at positions `span`; gives the block."""
        block = scope.blocks.get(key)
        if block is None:
            block = scope.blocks[key] = PrefixBlock(scope, key, *span)
        self.hold(block, row)
        return block

    def release(self, row: KVRow, room: int, *, spoiled: bool = False) -> None:
        """Let go of a row that is about to be freed: copy out what no other row has.

        Args:
            row: the row.
            room: tokens of the cache that nobody has reserved.
            spoiled: the row may hold what is not finite; nothing of it alone is kept.
        """
        blocks = self._held.pop(row, [])
        for block in blocks:
            del block.rows[row]
        limit = min(self._capacity, room)
        budget = limit
        kept = []
        for block in blocks:  # from the prompt's start, without which the rest is of no use
            budget -= block.end - block.start
            if block.copy is None and not block.rows:
                if spoiled or budget < 0:
                    self._forget(block)
                    continue
                kept.append(block)
        self.touch(blocks)
        self.shrink(limit - sum(block.end - block.start for block in kept))
        for place, block in enumerate(kept):
            copy = attempt("copying", partial(self._copy_out, row, block.start, block.end))
            if isinstance(copy, EngineError):  # no memory: what cannot be kept is computed again
                for lost in kept[place:]:
                    self._forget(lost)
                del kept[place:]
                break
            block.copy = copy
            self.copied_tokens += block.end - block.start
        for block in reversed(kept):
            self._copies[block] = None
        self.touch(blocks)

    def touch(self, blocks: list[PrefixBlock]) -> None:
        """Mark blocks of one prompt, in their order, as used: its start goes last of all."""
        for block in reversed(blocks):
            if block in self._copies:
                self._copies.move_to_end(block)

    def shrink(self, room: int) -> None:
        """Drop copies until no more than `room` tokens are in them."""
        while self.copied_tokens > min(self._capacity, max(0, room)):
            block = next(iter(self._copies))
            self._drop_copy(block)
            if not block.rows:
                self._forget(block)

    def _drop_copy(self, block: PrefixBlock) -> None:
        del self._copies[block]
        block.copy = None
        self.copied_tokens -= block.end - block.start

    def _forget(self, block: PrefixBlock) -> None:
        """Make a block unfindable, and let its memory go."""
        if block.copy is not None:
            self._drop_copy(block)
        for row in block.rows:
            self._held[row].remove(block)
        block.rows.clear()
        if block.scope.blocks.get(block.key) is block:
            del block.scope.blocks[block.key]
