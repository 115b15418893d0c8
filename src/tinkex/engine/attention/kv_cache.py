"""Keys and values of running sequences, and attention over them.

Owns the memory. A sequence has one row in a slab of its size class (64, 128, 256 ... tokens) and
moves to the next class when it outgrows it: rows of a slab lie side by side, so one decode step is
one attention call for each class in use, on views, without gathering blocks. The class depends on
the sequence's own length alone, so its attention gives the same bits in any company.

Masked positions are never read as numbers, but they are multiplied by zero: slabs start as zeros,
and a row that held a NaN must be scrubbed when freed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.attention.sinks import decode_with_sinks
from tinkex.engine.attention.size_classes import row_capacity

if TYPE_CHECKING:
    from collections.abc import Sequence


KVCopy = dict[int, tuple[Tensor, Tensor]]
"""For each layer, keys and values [kv_heads, n, dim] of n tokens, outside the slabs."""


class KVRow:
    """One sequence's place in the cache; the same object for the sequence's whole life."""

    __slots__ = ("index", "length", "slab")

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab = slab
        self.index = index
        self.length = 0
        """Tokens stored."""

    @property
    def place(self) -> tuple[int, int]:
        """Size class and index: the order of the cache."""
        return self.slab.capacity, self.index


class Slab:
    """Rows of one size class: for each layer, keys and values [rows, kv_heads, capacity, dim]."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[KVRow] = []
        self._allocated = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def is_full(self) -> bool:
        """Whether the next row needs more storage."""
        return len(self.rows) == self._allocated

    @property
    def allocated_tokens(self) -> int:
        """Tokens that its storage has room for."""
        return self._allocated * self.capacity

    def add(self) -> KVRow:
        """Open a row, doubling the storage when it is full; or, when that fails, none."""
        if self.is_full:
            self._grow(max(1, 2 * self._allocated))
        row = KVRow(self, len(self.rows))
        self.rows.append(row)
        return row

    def _grow(self, count: int) -> None:
        """Make storage for `count` rows. When it fails half way, some layers have more than others.

        That harms nobody: only rows below `_allocated` are ever used.
        """
        for store in (self._keys, self._values):
            for layer, old in store.items():
                if old.shape[0] < count:
                    larger = old.new_zeros(count, *old.shape[1:])
                    larger[: old.shape[0]] = old
                    store[layer] = larger
        self._allocated = count

    def remove(self, row: KVRow, *, scrub: bool) -> None:
        """Close a row; the last one moves into the hole."""
        last = self.rows.pop()
        for store in (self._keys, self._values):
            for tensor in store.values():
                if last is not row:
                    tensor[row.index] = tensor[last.index]
                if scrub:
                    tensor[last.index] = 0
        if last is not row:
            last.index = row.index
            self.rows[last.index] = last

    def shrink(self) -> None:
        """Give storage back that less than a quarter of is used; all of it when no row is open."""
        if not self.rows:
            self._keys, self._values, self._allocated = {}, {}, 0
        elif 4 * len(self.rows) < self._allocated:
            self._allocated = 2 * len(self.rows)  # first: what has more then harms nobody
            for store in (self._keys, self._values):
                for layer, old in store.items():
                    store[layer] = old[: self._allocated].clone()

    def layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Give one layer's storage, made on first use to fit [N, kv_heads, dim] keys and values."""
        if layer not in self._keys:
            rows, capacity = self._allocated, self.capacity
            made = [t.new_zeros(rows, t.shape[1], capacity, t.shape[2]) for t in (key, value)]
            self._keys[layer], self._values[layer] = made
        return self._keys[layer], self._values[layer]

    def copy_row(self, source: KVRow, target: KVRow, start: int, end: int) -> None:
        """Copy positions of `source`, a row of this slab, into `target`, of any slab."""
        other = target.slab
        for layer, keys in self._keys.items():
            values = self._values[layer]
            to_keys, to_values = other.layer(layer, keys[:, :, 0], values[:, :, 0])
            for stored, to in ((keys, to_keys), (values, to_values)):
                to[target.index, :, start:end] = stored[source.index, :, start:end]

    def copy_out(self, row: KVRow, start: int, end: int) -> KVCopy:
        """Copy positions of a row of this slab into memory of its own."""
        at = row.index, slice(None), slice(start, end)
        return {
            layer: (keys[at].clone(), self._values[layer][at].clone())
            for layer, keys in self._keys.items()
        }

    def copy_in(self, copy: KVCopy, row: KVRow, start: int) -> None:
        """Put a copy into a row of this slab, from position `start` on."""
        for layer, (keys, values) in copy.items():
            end = start + keys.shape[1]
            like = keys.transpose(0, 1), values.transpose(0, 1)
            for to, part in zip(self.layer(layer, *like), (keys, values), strict=True):
                to[row.index, :, start:end] = part


class KVCache:
    """All slabs of one engine."""

    def __init__(self) -> None:
        self._slabs: dict[int, Slab] = {}

    def allocate(self, tokens: int) -> KVRow:
        """Open a row with room for `tokens`."""
        capacity = row_capacity(tokens)
        slab = self._slabs.get(capacity)
        if slab is None:
            slab = self._slabs[capacity] = Slab(capacity)
        if slab.is_full:  # others may have been busy before, and need not keep it all
            for one in self._slabs.values():
                one.shrink()
        return slab.add()

    def fork(self, row: KVRow) -> KVRow:
        """Copy a row, so that a sample may go on from a shared prompt."""
        copy = self.allocate(row.length)
        self._copy_or_free(row, copy)
        copy.length = row.length
        return copy

    @staticmethod
    def copy_out(row: KVRow, start: int, end: int) -> KVCopy:
        """Copy positions of a row into memory of its own."""
        return row.slab.copy_out(row, start, end)

    def make_room(self, row: KVRow, tokens: int = 1) -> KVRow:
        """Give the row with room for so many more tokens: moved to a larger class when it is full.

        The class depends on the length that it then may have, not on the steps to it.
        """
        if row.length + tokens <= row.slab.capacity:
            return row
        larger = self.allocate(row.length + tokens)
        self._copy_or_free(row, larger)
        row.slab.remove(row, scrub=False)
        row.slab, row.index = larger.slab, larger.index
        row.slab.rows[row.index] = row
        return row

    def _copy_or_free(self, row: KVRow, new: KVRow) -> None:
        """Copy a row into a new one; when that fails, there is no new one."""
        try:
            row.slab.copy_row(row, new, 0, row.length)
        except BaseException:
            self.free(new)
            raise

    def free(self, row: KVRow, *, scrub: bool = False) -> None:
        """Close a row; `scrub` when it may hold what is not finite."""
        row.slab.remove(row, scrub=scrub)

    @property
    def open_rows(self) -> int:
        """Rows in use."""
        return sum(len(slab.rows) for slab in self._slabs.values())

    @property
    def allocated_tokens(self) -> int:
        """Tokens that there is storage for."""
        return sum(slab.allocated_tokens for slab in self._slabs.values())


class DecodeAttention:
    """Attention of one new token for each running sequence over its row.

    Rows of the batch past `rows` are filler and attend to nothing. Fastest where `rows` are in the
    order of the cache, by size class and place: nothing is gathered then.
    """

    def __init__(self, rows: Sequence[KVRow], device: torch.device) -> None:
        plan: dict[int, tuple[Slab, list[int]]] = {}
        for place, row in enumerate(rows):
            plan.setdefault(row.slab.capacity, (row.slab, []))[1].append(place)
        self._groups = [
            _DecodeGroup(slab, places, [rows[i] for i in places], device)
            for slab, places in plan.values()
        ]
        self._count = len(rows)
        self._whole = len(self._groups) == 1
        """Whether one group has all rows, in their order."""
        for row in rows:
            row.length += 1

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """See `PackedAttention.attend`."""
        if self._whole and query.shape[0] == self._count:
            return self._groups[0].attend(layer, [query, key, value], scaling, window, sinks)
        out = query.new_zeros(query.shape[0], query.shape[1], value.shape[2])
        for group in self._groups:
            part = [t[group.places] for t in (query, key, value)]
            out[group.places] = group.attend(layer, part, scaling, window, sinks)
        return out


class _DecodeGroup:
    """The running sequences of one slab."""

    def __init__(
        self, slab: Slab, places: Sequence[int], rows: Sequence[KVRow], device: torch.device
    ) -> None:
        self._slab = slab
        together = places[-1] - places[0] + 1 == len(places)
        self.places = (
            slice(places[0], places[-1] + 1) if together else torch.tensor(places, device=device)
        )
        """Of the batch: a slice where they lie side by side."""
        at = [row.index for row in rows]
        self._whole = at == list(range(len(slab.rows)))
        """Whether the sequences are all rows of the slab, in its order."""
        self._at = torch.tensor(at, device=device)
        self._position = torch.tensor([row.length for row in rows], device=device)
        self._open = len(slab.rows)
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self, layer: int, part: list[Tensor], scaling: float, window: int, sinks: Tensor | None
    ) -> Tensor:
        """Store new keys and values [n, kv_heads, dim], then attend with [n, heads, dim] queries.

        Returns:
            [n, heads, dim].
        """
        query, key, value = part
        keys, values = self._slab.layer(layer, key, value)
        keys[self._at, :, self._position] = key
        values[self._at, :, self._position] = value
        count, heads, dim = query.shape
        # Query heads that share a key head ride along as query positions: no copy of the keys.
        folded = query.reshape(count, key.shape[1], heads // key.shape[1], dim)
        full = folded
        if not self._whole:
            # Rows that wait (prompts held for later samples) attend too, for nothing.
            full = folded.new_zeros(self._open, *folded.shape[1:])
            full[self._at] = folded
        stored = keys[: self._open], values[: self._open]
        seen, bias = self._mask(window, query.dtype)
        if sinks is not None:
            out = decode_with_sinks(full, *stored, sinks, mask=seen, scaling=scaling)
        else:
            out = F.scaled_dot_product_attention(full, *stored, attn_mask=bias, scale=scaling)
        return (out if self._whole else out[self._at]).reshape(count, heads, -1)

    def _mask(self, window: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Say where a row's token may look: [open rows, 1, 1, capacity].

        Returns:
            True there; and 0 there, -inf elsewhere, which each layer would make of it anew.
        """
        found = self._masks.get(window)
        if found is None:
            position = self._position
            if not self._whole:
                position = position.new_zeros(self._open)
                position[self._at] = self._position
            slots = torch.arange(self._slab.capacity, device=position.device)
            distance = position[:, None] - slots
            seen = distance >= 0
            if window:
                seen &= distance < window
            seen = seen[:, None, None]
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            found = self._masks[window] = seen, bias.masked_fill_(~seen, -torch.inf)
        return found
