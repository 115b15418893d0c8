"""Rotary positions (Su et al. 2021, arXiv 2104.09864) for the written-out decoder, from a table.

transformers' module computes the angles' cosines and sines anew in every forward, which on a CPU
costs a decode step of a small model a dozen operators. They depend on the position alone, so they
are computed once, by that same module, and looked up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FIRST = 256
_MOST = 8192
"""Positions in the table, at most: beyond, a step's attention costs far more than the angles."""


class Rotation:
    """Rotates the heads of queries and keys by their positions.

    Args:
        module: The model's own, which gives cosines and sines [1, N, head_dim] of positions [1, N].
        context: Positions that the model takes: some modules give other angles once they were asked
            for one beyond (`support.context_length`). 0 where that is not known.
    """

    def __init__(self, module: Any, context: int) -> None:
        self._module = module
        self._most = min(context or _MOST, _MOST)
        self._table: Tensor | None = None

    def at(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Give what `rotate` takes, for rows at `positions` [N] int64.

        Args:
            positions: Of the rows.
            like: Any tensor of the dtype that is wanted, on the same device.

        Returns:
            Cosines and signed sines, each [N, 1, head_dim].
        """
        if positions.device.type != "cpu":
            found = self._compute(positions, like)  # to look at the positions would wait for them
        else:
            highest = int(positions.max())
            found = (
                self._compute(positions, like)
                if highest >= self._most
                else self._rows(highest, like).index_select(0, positions)
            )
        return found[:, :1], found[:, 1:]

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate heads [N, heads, head_dim]. Differentiable by x."""
        return x.roll(x.shape[-1] // 2, -1).mul_(sin).addcmul_(x, cos)

    def _rows(self, highest: int, like: Tensor) -> Tensor:
        table = self._table
        if table is None or highest >= len(table) or table.dtype != like.dtype:
            size = min(max(_FIRST, 1 << highest.bit_length()), self._most)
            # Training saves rows of it for its backward, which it may not of an inference's tensor.
            with torch.inference_mode(mode=False):
                table = self._table = self._compute(torch.arange(size), like)
        return table

    @torch.no_grad()
    def _compute(self, positions: Tensor, like: Tensor) -> Tensor:
        cos, sin = self._module(like, positions[None])
        half = cos.shape[-1] // 2
        # Half of the rotation's sign lies in the sine, so that the other half needs no negation.
        return torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)], 1)
