"""The unembedding: logits for sampling, and the chunked log-probability head for training.

Owns W [V, C], its bias, and its LoRA at run time. In training no more than one chunk of logits
exists at a time: a loss is a function of per-token log-probabilities, so for each chunk the head
computes logits and log-probabilities, asks for the loss's gradient on these few numbers, and turns
it at once into the gradients of the hidden states and of the unembedding's LoRA. That costs two
products with W where keeping the graph would cost two and N x V memory, and recomputing three.

Rows of several runs share a chunk. How a run's rows are cut, and every product that sums over them,
depend on that run alone, so no bit of its results tells of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.lora.linear import add_lora
from tinkex.engine.lora.stack import StackedRows
from tinkex.engine.lora.weights import UNEMBED, LoraGroup, LoraSegment, LoraShape, LoraWeights
from tinkex.errors import TinkerError

if TYPE_CHECKING:
    from tinkex.engine.matrices.frozen import FrozenMatrix
    from tinkex.engine.matrices.products import Products

MIN_CHUNK_ROWS = 128
"""Below this many rows the products with W get slow (measured: 2x at 32 rows)."""

_SPARSE = 0.75
"""Rows with a gradient are gathered when they are less than this share of a run's slice."""
_FEW_ROWS = 64
"""Below this many, LoRA is added to a run's logits in one call."""
_ADD_COLUMNS = 4096
"""Logits of a row to which LoRA is added at a time: what was just computed is then in the cache."""

_MOST_BITS = 60
"""Slopes are multiplied by no more than two to this, or divided."""

LogprobGradient = Callable[[slice, Tensor], Tensor]
"""(rows, logprobs [n, K]) -> dL/dlogprobs [n, K] for these rows."""


@dataclass(slots=True, eq=False)
class HeadPart:
    """One run's rows in a pass of the head with gradients, and what the pass found for them."""

    start: int
    """Its first row among the hidden states."""
    targets: Tensor
    """[n, K] int64, for each of its n rows."""
    weights: LoraWeights
    gradient: LoraWeights | None
    """Where the gradients of the unembedding's A and B are added."""
    gradient_of: LogprobGradient
    """Gives dL/dlogprobs for a slice of its rows; called once for each, in order."""
    logprobs: Tensor = field(init=False)
    """[n, K] float32: found."""
    failure: TinkerError | None = None
    """What `gradient_of` raised; the run's rows then have no gradient."""
    d_b: Tensor | None = None
    """dL/dB of the slices so far, transposed [r, V]."""

    def __post_init__(self) -> None:
        self.logprobs = torch.empty(
            self.targets.shape, dtype=torch.float32, device=self.targets.device
        )


@dataclass(frozen=True, slots=True)
class _Slice:
    """Some rows of one run, as they lie in a chunk."""

    part: HeadPart
    rows: slice
    """Of the run."""
    at: slice
    """Of the chunk."""


class Head:
    """The unembedding of one base model."""

    def __init__(
        self, matrix: FrozenMatrix, products: Products, *, chunk_elements: int, row_multiple: int
    ) -> None:
        self.matrix = matrix
        self._products = products
        rows_out, rows_in = matrix.shape
        self._group = LoraGroup.of(LoraShape(UNEMBED, rows_in, rows_out))
        self._row_multiple = row_multiple
        self._chunk = max(MIN_CHUNK_ROWS, chunk_elements // rows_out)

    @property
    def chunk_rows(self) -> int:
        """Rows whose logits exist at once, at most."""
        return self._chunk

    @torch.no_grad()
    def logits(
        self,
        hidden: Tensor,
        rows: Sequence[LoraSegment] | StackedRows,
        live: int | None = None,
    ) -> Tensor:
        """Compute float32 logits [N, V] of hidden states [N, C]; meant for few rows.

        `live` of the rows count, where those after them are filler.
        """
        count = hidden.shape[0]
        plain = rows.plain if isinstance(rows, StackedRows) else not rows
        x = self._padded(hidden, plain=plain)
        z = self.matrix.live_rows(x, live or count).float()
        if isinstance(rows, StackedRows):
            rows.add(z, x.float(), self._group)
        elif rows:
            add_lora(z, x.float(), self._group, rows, self._products, self._row_multiple)
        return z[:count]

    def _padded(self, x: Tensor, *, plain: bool = False) -> Tensor:
        extra = 0 if plain and self.matrix.steady_from == 1 else -x.shape[0] % self._row_multiple
        return F.pad(x, (0, 0, 0, extra)) if extra else x

    @staticmethod
    def segments_of(rows: Tensor, adapter: LoraWeights | None) -> tuple[LoraSegment, ...]:
        """Give the segments of rows [n, C] that all belong to one adapter, or to none."""
        return () if adapter is None else (LoraSegment(0, rows.shape[0], adapter),)

    @torch.no_grad()
    def topk_logprobs(
        self, hidden: Tensor, k: int, adapter: LoraWeights | None
    ) -> tuple[Tensor, Tensor]:
        """Find the k likeliest tokens of each row.

        Returns:
            Log-probabilities [N, k] float32 in falling order, and token ids [N, k] int64.
        """
        found = []
        for start in range(0, hidden.shape[0], self._chunk):
            rows = hidden[start : start + self._chunk]
            found.append(top_logprobs(self.logits(rows, self.segments_of(rows, adapter)), k))
        values, ids = zip(*found, strict=True)
        return torch.cat(values), torch.cat(ids)

    @torch.no_grad()
    def logprobs(self, hidden: Tensor, targets: Tensor, adapter: LoraWeights | None) -> Tensor:
        """Compute log p(target) without gradients.

        Args:
            hidden: [N, C].
            targets: [N, K] int64.
            adapter: The adapter of all rows, if any.

        Returns:
            [N, K] float32.
        """
        found = []
        for rows in self._slices(targets.shape[0]):
            x = hidden[rows]
            z = self.matrix.rows_times(self._padded(x)).float()
            if adapter is not None:
                self._add_lora(z[: x.shape[0]], x, adapter)
            chosen, _ = _log_softmax_at(z, [(slice(x.shape[0]), targets[rows])])
            found.append(chosen[0])
        return torch.cat(found)

    @torch.no_grad()
    def backward(self, hidden: Tensor, parts: Sequence[HeadPart]) -> Tensor:
        """Compute log p(target) and the gradients of losses that are functions of it.

        Args:
            hidden: [N, C], detached.
            parts: The runs and their rows, in order. Filled in: log-probabilities, failures, and
                the gradients of the unembedding's LoRA.

        Returns:
            dL/dhidden [N, C], in the dtype of `hidden`, but float32 where that is float16: its
            range is too small for them (`in_range`). Zero for rows of no run.
        """
        narrow = hidden.dtype == torch.float16
        slopes = torch.zeros_like(hidden, dtype=torch.float32 if narrow else hidden.dtype)
        for chunk in self._joint_chunks(parts):
            self._chunk_backward(hidden, chunk, slopes)
        for part in parts:
            if part.d_b is not None and part.gradient is not None:
                d_b = part.d_b[: part.weights.rank].t()
                part.gradient.pairs[UNEMBED].b.add_(d_b, alpha=part.weights.scale)
        return slopes

    def _slices(self, count: int) -> list[slice]:
        """Cut a run's rows: by its own number alone."""
        return [slice(i, min(i + self._chunk, count)) for i in range(0, count, self._chunk)]

    def _joint_chunks(self, parts: Sequence[HeadPart]) -> list[list[_Slice]]:
        """Put slices of the runs together, as long as they fit into one chunk."""
        chunks: list[list[_Slice]] = []
        used = self._chunk
        for part in parts:
            for rows in self._slices(part.targets.shape[0]):
                size = rows.stop - rows.start
                if used + size > self._chunk:
                    chunks.append([])
                    used = 0
                chunks[-1].append(_Slice(part, rows, slice(used, used + size)))
                used += size
        return chunks

    def _chunk_backward(self, hidden: Tensor, chunk: Sequence[_Slice], slopes: Tensor) -> None:
        xs = [_rows_of(hidden, one) for one in chunk]
        x = self._padded(xs[0] if len(xs) == 1 else torch.cat(xs))
        z = self.matrix.rows_times(x).float()
        for one, own in zip(chunk, xs, strict=True):
            self._add_lora(z[one.at], own, one.part.weights)
        chosen, p = _log_softmax_at(z, [(one.at, one.part.targets[one.rows]) for one in chunk])
        live = []
        for one, logprobs in zip(chunk, chosen, strict=True):
            one.part.logprobs[one.rows] = logprobs
            found = self._slice_backward(one, p)
            if found is not None:
                live.append((one, *found))
        if not live:
            return
        whole = len(live) == len(chunk) and all(index is None for _, index, _ in live)
        # The rows of whole slices lie there already, filler and all.
        d_logits = p if whole else self._padded(torch.cat([rows for _, _, rows in live]))
        narrow = self.matrix.dtype == torch.float16
        factors = [in_range(rows) if narrow else 1.0 for _, _, rows in live]
        if narrow:
            d_logits = self._padded(
                torch.cat([rows * f for (_, _, rows), f in zip(live, factors, strict=True)])
            )
        d_hidden = self.matrix.times(d_logits.to(self.matrix.dtype)).float()
        start = 0
        for (one, index, rows), factor in zip(live, factors, strict=True):
            d_x = d_hidden[start : start + rows.shape[0]]
            d_x = d_x / factor if narrow else d_x
            start += rows.shape[0]
            self._lora_backward(one, _rows_of(hidden, one), index, rows, d_x)
            into = _rows_of(slopes, one)
            into[slice(None) if index is None else index] = d_x.to(slopes.dtype)

    @staticmethod
    def _slice_backward(one: _Slice, p: Tensor) -> tuple[Tensor | None, Tensor] | None:
        """Turn a slice's probabilities into dL/dlogits, in place.

        Returns:
            The rows that have a gradient [m] when only those are kept, and dL/dlogits [m, V]; None
            when there is none.
        """
        part = one.part
        if part.failure is not None:
            return None
        try:
            slope = part.gradient_of(one.rows, part.logprobs[one.rows])
        except TinkerError as error:
            part.failure = error
            return None
        targets, d_logits = part.targets[one.rows], p[one.at]
        live = slope.ne(0).any(dim=1).nonzero()[:, 0]
        if live.numel() == 0:
            return None
        index = live if live.numel() < _SPARSE * slope.shape[0] else None
        if index is not None:
            d_logits, targets, slope = d_logits[index], targets[index], slope[index]
        # d logprob[t] / d logit = onehot(t) - softmax
        d_logits.mul_(slope.sum(dim=1, keepdim=True).neg_())
        d_logits.scatter_add_(1, targets, slope)
        return index, d_logits

    def _lora_backward(
        self, one: _Slice, x: Tensor, index: Tensor | None, d_logits: Tensor, d_hidden: Tensor
    ) -> None:
        """Add the unembedding's LoRA to dL/dhidden [m, C], and its gradients to the run's."""
        weights, gradient = one.part.weights, one.part.gradient
        if UNEMBED not in weights.pairs:
            return
        pair = weights.pairs[UNEMBED].wide
        x = (x if index is None else x[index]).float()
        d_inner = self._products.rows(d_logits, pair.b.t()).mul_(weights.scale)
        d_hidden.add_(self._products.rows(d_inner, pair.a.t()))
        if gradient is None:
            return
        gradient.pairs[UNEMBED].a.add_(torch.mm(d_inner.t(), x)[: weights.rank])
        inner = self._products.rows(x, pair.a)
        d_b = self._products.rows(inner.t().contiguous(), d_logits.t())
        one.part.d_b = d_b if one.part.d_b is None else one.part.d_b.add_(d_b)

    def _add_lora(self, z: Tensor, x: Tensor, weights: LoraWeights) -> None:
        """Add the LoRA of one adapter to logits [n, V] of hidden states [n, C]."""
        if UNEMBED not in weights.pairs:
            return
        pair = weights.pairs[UNEMBED].wide
        inner = self._products.rows(x.float(), pair.a).mul_(weights.scale)
        if x.shape[0] < _FEW_ROWS:
            z.addmm_(inner, pair.b.t())
            return
        for start in range(0, z.shape[1], _ADD_COLUMNS):
            at = slice(start, start + _ADD_COLUMNS)
            z[:, at].add_(self._products.rows(inner, pair.b[at]))


def in_range(slopes: Tensor) -> float:
    """Give the power of two that brings the largest slope near 1, the middle of float16's range.

    Weights of a mean over many tokens make slopes that float16 would round to nothing.
    """
    largest = float(slopes.abs().amax()) if slopes.numel() else 0.0
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** min(max(-math.frexp(largest)[1], -_MOST_BITS), _MOST_BITS)


def _rows_of(values: Tensor, one: _Slice) -> Tensor:
    """Give a slice's rows of what is laid out as the hidden states."""
    return values[one.part.start + one.rows.start : one.part.start + one.rows.stop]


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k likeliest tokens [n, k] of logits [n, V]: log-probabilities and ids."""
    values, ids = logits.topk(k, dim=1)
    return values - logits.logsumexp(dim=1, keepdim=True), ids


def _log_softmax_at(
    z: Tensor, wanted: Sequence[tuple[slice, Tensor]]
) -> tuple[list[Tensor], Tensor]:
    """Compute the log-softmax of `z` [n, V] at some targets; `z` is overwritten.

    Args:
        z: Logits, float32.
        wanted: Rows, and their targets [m, K].

    Returns:
        Log-probabilities [m, K] for each of `wanted`, and softmax(z) [n, V].
    """
    top = z.amax(dim=1, keepdim=True)
    chosen = [z[at].gather(1, targets).sub_(top[at]) for at, targets in wanted]
    # In place on a CPU, where a row is read before it is written: half of the memory.
    p = torch.softmax(z, dim=1, out=z) if z.device.type == "cpu" else torch.softmax(z, dim=1)
    # The largest logit's probability is 1 / sum(exp(z - top)).
    log_largest = p.amax(dim=1, keepdim=True).log_()
    return [c.add_(log_largest[at]) for c, (at, _) in zip(chosen, wanted, strict=True)], p
