"""The unembedding: logits for sampling, and the chunked log-probability head for training.

Owns W [V, C], its bias, and its LoRA at run time. In training no more than one chunk of logits
exists at a time: a loss is a function of per-token log-probabilities, so for each chunk the head
computes logits and log-probabilities, asks for the loss's gradient on these few numbers, and turns
it at once into the gradients of the hidden states and of the unembedding's LoRA. That costs two
products with W where keeping the graph would cost two and N x V memory, and recomputing three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tinkex.engine.lora import UNEMBED, LoraSegment, LoraWeights, add_lora

if TYPE_CHECKING:
    from tinkex.engine.weight_layout import FrozenMatrix

MIN_CHUNK_ROWS = 128
"""Below this many rows the products with W get slow (measured: 2x at 32 rows)."""

_SPARSE = 0.75
"""Rows with a gradient are gathered when they are less than this share of a chunk."""

LogprobGradient = Callable[[slice, Tensor], Tensor]
"""(rows, logprobs [n, K]) -> dL/dlogprobs [n, K] for these rows."""


@dataclass(frozen=True, slots=True)
class HeadGradients:
    """What one pass of the head gives back."""

    logprobs: Tensor
    """[N, K] float32."""
    hidden: Tensor
    """dL/dhidden [N, C], in the hidden states' dtype."""
    a: Tensor | None
    """dL/dA [r, C] float32, when the adapter covers the unembedding."""
    b: Tensor | None
    """dL/dB [V, r] float32, likewise."""


class Head:
    """The unembedding of one base model."""

    def __init__(self, matrix: FrozenMatrix, *, chunk_elements: int, row_multiple: int) -> None:
        self.matrix = matrix
        self._row_multiple = row_multiple
        self._chunk = max(MIN_CHUNK_ROWS, chunk_elements // matrix.shape[0])

    @torch.no_grad()
    def logits(self, hidden: Tensor, segments: Sequence[LoraSegment]) -> Tensor:
        """Compute float32 logits [N, V] of hidden states [N, C]; meant for few rows."""
        count = hidden.shape[0]
        extra = -count % self._row_multiple
        rows = F.pad(hidden, (0, 0, 0, extra)) if extra else hidden
        z = self.matrix.rows_times(rows).float()
        if segments:
            add_lora(z, rows.float(), UNEMBED, segments, self._row_multiple)
        return z[:count]

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
        return torch.cat(
            [
                _log_softmax_at(
                    self.logits(hidden[rows], self.segments_of(hidden[rows], adapter)), t
                )[0]
                for rows, t in self._chunks(targets)
            ]
        )

    @torch.no_grad()
    def logprobs_and_gradients(
        self,
        hidden: Tensor,
        targets: Tensor,
        adapter: LoraWeights,
        gradient_of: LogprobGradient,
    ) -> HeadGradients:
        """Compute log p(target) and the gradients of a loss that is a function of it.

        Args:
            hidden: [N, C], detached.
            targets: [N, K] int64.
            adapter: The adapter of all rows.
            gradient_of: Gives dL/dlogprobs for a chunk; called once for each, in order.

        Returns:
            Log-probabilities, and gradients summed over all rows for A and B.
        """
        pair = adapter.pairs.get(UNEMBED)
        grads = HeadGradients(
            logprobs=torch.empty(targets.shape, dtype=torch.float32, device=hidden.device),
            hidden=torch.zeros_like(hidden),
            a=None if pair is None else torch.zeros_like(pair.a),
            b=None if pair is None else torch.zeros_like(pair.b),
        )
        for rows, chunk_targets in self._chunks(targets):
            z = self.logits(hidden[rows], self.segments_of(hidden[rows], adapter))
            logprobs, exp, total = _log_softmax_at(z, chunk_targets)
            grads.logprobs[rows] = logprobs
            slope = gradient_of(rows, logprobs)
            self._chunk_backward(hidden, rows, (exp, total, chunk_targets, slope), adapter, grads)
        return grads

    def _chunks(self, targets: Tensor) -> list[tuple[slice, Tensor]]:
        starts = range(0, targets.shape[0], self._chunk)
        return [(slice(i, i + self._chunk), targets[i : i + self._chunk]) for i in starts]

    def _chunk_backward(
        self,
        hidden: Tensor,
        rows: slice,
        chunk: tuple[Tensor, Tensor, Tensor, Tensor],
        adapter: LoraWeights,
        grads: HeadGradients,
    ) -> None:
        """Add one chunk's share to `grads`; rows without a slope cost nothing."""
        exp, total, targets, slope = chunk
        x = hidden[rows]
        live = slope.ne(0).any(dim=1).nonzero()[:, 0]
        if live.numel() == 0:
            return
        sparse = live.numel() < _SPARSE * slope.shape[0]
        if sparse:
            exp, total, targets, slope, x = (t[live] for t in (exp, total, targets, slope, x))
        # d logprob[t] / d logit = onehot(t) - softmax
        d_logits = exp.mul_(slope.sum(dim=1, keepdim=True).neg_().div_(total))
        d_logits.scatter_add_(1, targets, slope)
        d_hidden = self.matrix.times(d_logits.to(self.matrix.dtype)).float()
        pair = adapter.pairs.get(UNEMBED)
        if pair is not None and grads.a is not None and grads.b is not None:
            d_inner = (d_logits @ pair.b).mul_(adapter.scale)
            d_hidden.addmm_(d_inner, pair.a)
            grads.a.addmm_(d_inner.t(), x.float())
            grads.b.addmm_(d_logits.t(), F.linear(x.float(), pair.a), alpha=adapter.scale)
        target_rows = grads.hidden[rows]
        if sparse:
            target_rows[live] = d_hidden.to(hidden.dtype)
        else:
            target_rows.copy_(d_hidden)


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k likeliest tokens [n, k] of logits [n, V]: log-probabilities and ids."""
    values, ids = logits.topk(k, dim=1)
    return values - logits.logsumexp(dim=1, keepdim=True), ids


def _log_softmax_at(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-softmax of `z` [n, V] at `targets` [n, K]; `z` is overwritten.

    Returns:
        Log-probabilities [n, K], exp(z - max) [n, V], and its row sums [n, 1].
    """
    top = z.amax(dim=1, keepdim=True)
    z.sub_(top)
    chosen = z.gather(1, targets)
    exp = z.exp_()
    total = exp.sum(dim=1, keepdim=True)
    return chosen.sub_(total.log()), exp, total
