"""Decoding with many adapters in one batch: their factors side by side, one product for all.

A decode step has one row for each sequence, so a product for each adapter costs more in calls than
in work. Here the factors of the adapters that run lie beside each other in pages: x [A1 A2 ...] is
one product, a mask leaves each row its own adapter's part, and the second product, with [B1; B2;
...], adds it up. (The masked wide product that engine.md proposes; unlike a gather of A and B by
row it copies no weights in a step.)

**Bits.** A row's result is the same whatever the company and the slot: a slot's width is a multiple
of 16 columns, which is how the kernels cut the output; the columns of other adapters are exact
zeros in the second sum. `slots_are_neutral` tries both on this machine before it is relied on.

**Harm.** What is masked is overwritten, not multiplied by zero, so that an adapter that overflows
cannot reach another's row; one whose weights are not finite never enters a page, and its own rows
become NaN.

Owns the pages, and who is in them. A copy of an adapter lives here from its first decode step until
its place is needed or the adapter is gone. A page goes when all of its adapters are gone, but for
the last of its width: the next adapter needs it soon.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tinkex.engine.lora.weights import LoraSegment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.lora.weights import LoraGroup, LoraWeights
    from tinkex.engine.matrices.products import Products

_UNIT = 16
"""Columns in which kernels cut their output."""
_PAGE_UNITS = 4
"""Adapters of a page share products, whose work grows with the square of their number."""
_ROWS = 4
_WIDE = 4096
"""Outputs from which the second product is a large one."""


class AdapterStack:
    """The pages of one engine.

    Args:
        device: Where they lie.
        products: For large outputs.
        share: Whether adapters share a page (`slots_are_neutral`).
    """

    def __init__(self, device: torch.device, products: Products, *, share: bool) -> None:
        self._device = device
        self._products = products
        self._share = share
        self._pages: list[_Page] = []
        self._latest: tuple[int, list[weakref.ref[LoraWeights] | None], StackedRows] | None = None

    def rows(self, weights: Sequence[LoraWeights | None], count: int) -> StackedRows:
        """Place the adapters of a decode step.

        Args:
            weights: Of each row; None is the base model.
            count: Rows of the batch, filler included.

        Returns:
            What adds their LoRA, for this step.
        """
        if self._latest is not None:
            before, held, found = self._latest
            same = before == count and len(held) == len(weights)
            # An adapter that is gone is nobody's, and so not the base model's either.
            if same and all(
                (one is None) == (ref is None) and (ref is None or ref() is one)
                for one, ref in zip(weights, held, strict=True)
            ):
                return found
        self._latest = None  # a failure below may leave its places to others
        self._drop_pages()
        # Weakly: what a step used must not keep an adapter alive.
        held = [None if one is None else weakref.ref(one) for one in weights]
        found = StackedRows(self._place(weights, count), held, self._products)
        self._latest = (count, held, found)
        return found

    def _place(self, weights: Sequence[LoraWeights | None], count: int) -> tuple[_Part, ...]:
        distinct = {id(one): one for one in weights if one is not None}
        needed = frozenset(distinct)
        used: dict[int, tuple[_Page, dict[int, list[int]]]] = {}
        for one in distinct.values():
            page, slot = self._slot_of(one, needed)
            rows = [row for row, other in enumerate(weights) if other is one]
            used.setdefault(id(page), (page, {}))[1][slot] = rows
        alone = len(distinct) == 1 and None not in weights
        parts = []
        for page, slots in used.values():
            first, last = min(slots), max(slots) + 1
            if alone:
                parts.append(_Part(page, first, last, slice(0, count), None))
                continue
            taken = [row for rows in slots.values() for row in rows]
            # Four rows up, a row's bits do not tell how many there are.
            low, high = min(taken) // _ROWS * _ROWS, -(-(max(taken) + 1) // _ROWS) * _ROWS
            at = slice(low, min(high, count))
            kept = torch.zeros(at.stop - low, last - first, dtype=torch.bool)
            for slot, rows in slots.items():
                kept[[row - low for row in rows], slot - first] = True
            parts.append(_Part(page, first, last, at, kept.to(self._device)))
        return tuple(parts)

    def _drop_pages(self) -> None:
        """Give the memory of pages back that a busier time has left."""
        used = {id(page) for page in self._pages if page.is_used}
        widths = {page.units for page in self._pages if id(page) in used}
        kept = []
        for page in self._pages:
            if id(page) in used or page.units not in widths:
                widths.add(page.units)
                kept.append(page)
        self._pages = kept

    def place_of(self, weights: LoraWeights | None) -> tuple[int, int]:
        """Give page and slot of an adapter: steps are fastest with rows in this order.

        Where it has none yet, and for the base model, they come before all others.
        """
        if weights is not None:
            for number, page in enumerate(self._pages):
                slot = page.find(weights)
                if slot is not None:
                    return number, slot
        return -1, -1

    def _slot_of(self, weights: LoraWeights, needed: frozenset[int]) -> tuple[_Page, int]:
        """Find an adapter's place, or make one where no adapter of this step is."""
        units = max(1, 1 << (-(-weights.rank // _UNIT) - 1).bit_length())
        pages = [page for page in self._pages if page.units == units]
        for page in pages:
            slot = page.find(weights)
            if slot is not None:
                return page, slot
        for page in pages:
            slot = page.vacancy(needed)
            if slot is not None:
                page.enter(slot, weights)
                return page, slot
        page = _Page(units, max(1, _PAGE_UNITS // units) if self._share else 1, self._device)
        self._pages.append(page)
        page.enter(0, weights)
        return page, 0


class _Page:
    """Slots of equal width for adapters."""

    def __init__(self, units: int, slots: int, device: torch.device) -> None:
        self.units = units
        self._device = device
        self._slots: list[weakref.ref[LoraWeights] | None] = [None] * slots
        self._factors: dict[tuple[str, ...], _Factors] = {}

    @property
    def is_used(self) -> bool:
        """Whether an adapter that is not gone is here."""
        return any(held is not None and held() is not None for held in self._slots)

    def find(self, weights: LoraWeights) -> int | None:
        """Give the slot of an adapter that is here."""
        for slot, held in enumerate(self._slots):
            if held is not None and held() is weights:
                return slot
        return None

    def vacancy(self, needed: frozenset[int]) -> int | None:
        """Give a slot that is empty, or whose adapter is gone or not `needed`."""
        for slot, held in enumerate(self._slots):
            weights = None if held is None else held()
            if weights is None or id(weights) not in needed:
                return slot
        return None

    def enter(self, slot: int, weights: LoraWeights) -> None:
        """Put an adapter into a slot, in the place of what was there."""
        self._slots[slot] = None  # nobody's, should a copy fail half way
        for factors in self._factors.values():
            self._copy(factors, slot, weights)
        self._slots[slot] = weakref.ref(weights)

    def factors(self, group: LoraGroup, first: int, last: int) -> _Factors:
        """Give the factors of a range of slots for the layers of a group."""
        found = self._factors.get(group.names)
        if found is None:
            found = self._factors[group.names] = self._make(group)
        width = self.units * _UNIT
        wide = width * len(group.names)
        return _Factors(
            found.group,
            found.a[:, first * wide : last * wide],
            tuple(b[first * width : last * width] for b in found.b),
        )

    def _make(self, group: LoraGroup) -> _Factors:
        columns = len(self._slots) * self.units * _UNIT
        made = _Factors(
            group,
            torch.zeros(group.rows_in, columns * len(group.names), device=self._device),
            tuple(
                torch.zeros(columns, at.stop - at.start, device=self._device)
                for at in group.columns.values()
            ),
        )
        for slot, held in enumerate(self._slots):
            weights = None if held is None else held()
            if weights is not None:
                self._copy(made, slot, weights)
        return made

    def _copy(self, into: _Factors, slot: int, weights: LoraWeights) -> None:
        width = self.units * _UNIT
        names = into.group.names
        wide = width * len(names)
        into.a[:, slot * wide : (slot + 1) * wide] = 0
        for b in into.b:
            b[slot * width : (slot + 1) * width] = 0
        if not is_finite(weights.flat):
            # Of its own rows alone: those of others are masked.
            into.a[:, slot * wide : (slot + 1) * wide] = torch.nan
            return
        for place, (name, b) in enumerate(zip(names, into.b, strict=True)):
            pair = weights.pairs.get(name)
            if pair is None:
                continue
            start = slot * wide + place * width
            own = into.a[:, start : start + weights.rank]
            torch.mul(pair.a.detach().t(), weights.scale, out=own)
            b[slot * width : slot * width + weights.rank] = pair.b.detach().t()


@dataclass(frozen=True, slots=True)
class _Factors:
    """Factors of some slots, for the layers of one group."""

    group: LoraGroup
    a: Tensor
    """[in, slots x layers x width], scaled; a slot's layers lie side by side."""
    b: tuple[Tensor, ...]
    """Of each layer [slots x width, out]."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The slots of one page that a step uses."""

    page: _Page
    first: int
    last: int
    at: slice
    """Rows of the batch among which those of these adapters are, n of them."""
    kept: Tensor | None
    """[n, slots] bool: a row's own slot; None when one adapter has every row."""
    factors: dict[tuple[str, ...], _Factors] = field(default_factory=dict)
    masks: dict[int, Tensor] = field(default_factory=dict)

    def factors_of(self, group: LoraGroup) -> _Factors:
        """Give the factors of these slots for the layers of a group."""
        found = self.factors.get(group.names)
        if found is None:
            found = self.page.factors(group, self.first, self.last)
            self.factors[group.names] = found
        return found

    def mask(self, columns: int) -> Tensor | None:
        """Give [n, slots x columns] bool: what is not a row's own."""
        if self.kept is None:
            return None
        found = self.masks.get(columns)
        if found is None:
            found = self.masks[columns] = ~self.kept.repeat_interleave(columns, dim=1)
        return found


class StackedRows:
    """The adapters of one decode step: adds the LoRA of every row."""

    def __init__(
        self,
        parts: tuple[_Part, ...],
        weights: Sequence[weakref.ref[LoraWeights] | None],
        products: Products,
    ) -> None:
        self._parts = parts
        self._weights = weights
        self._products = products

    @property
    def plain(self) -> bool:
        """Whether no row has an adapter."""
        return not self._parts

    def segments(self) -> tuple[LoraSegment, ...]:
        """Give rows by adapter, neighbours of the same one together; the base model has none."""
        found: list[LoraSegment] = []
        for row, held in enumerate(self._weights):
            weights = None if held is None else held()
            if weights is None:
                continue
            if found and found[-1].weights is weights and found[-1].end == row:
                found[-1] = LoraSegment(found[-1].start, row + 1, weights)
            else:
                found.append(LoraSegment(row, row + 1, weights))
        return tuple(found)

    @torch.no_grad()
    def add(self, out: Tensor, x: Tensor, group: LoraGroup) -> None:
        """Add the LoRA of the layers of `group` to `out` [N, out], given their input [N, in]."""
        layers = len(group.names)
        for part in self._parts:
            factors = part.factors_of(group)
            width = part.page.units * _UNIT
            rows, into = x[part.at], out[part.at]
            inner = torch.mm(rows.to(factors.a.dtype), factors.a)
            mask = part.mask(width * layers)
            if mask is not None:
                inner.masked_fill_(mask, 0.0)
            if layers == 1:
                self._add(into, inner, factors.b[0])
                continue
            by_layer = inner.view(len(inner), -1, layers, width)
            for place, (at, b) in enumerate(zip(group.columns.values(), factors.b, strict=True)):
                self._add(into[:, at], by_layer[:, :, place].reshape(len(inner), -1), b)

    def _add(self, out: Tensor, inner: Tensor, b: Tensor) -> None:
        if b.shape[1] >= _WIDE:
            out.add_(self._products.steady(inner, b.t()).to(out.dtype))
        elif out.dtype == b.dtype:
            out.addmm_(inner, b)
        else:
            out.add_(torch.mm(inner, b).to(out.dtype))


def is_finite(values: Tensor) -> bool:
    """Whether every value is finite; a sum that is finite says so in one pass."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


@cache
def slots_are_neutral() -> bool:
    """Whether products here give a row the same bits in any slot and any company.

    Tried on random factors: it is a property of kernels that nobody promises.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    slots = 8
    for rows_in, rows_out, columns in ((64, 96, 16), (200, 768, 48), (256, 520, 32)):
        x, a, b = (
            random(12, rows_in),
            random(rows_in, slots * columns),
            random(slots * columns, rows_out),
        )
        start = random(12, rows_out)
        for slot in range(slots):
            at = slice(slot * columns, (slot + 1) * columns)
            own = torch.mm(x[:4], a[:, at].contiguous())
            wide = torch.mm(x, a)
            if not torch.equal(wide[:4, at], own):
                return False
            masked = torch.zeros_like(wide)
            masked[:4, at] = own
            one = start[:4].clone().addmm_(own, b[at])
            if not torch.equal(start.clone().addmm_(masked, b)[:4], one):
                return False
    return True
