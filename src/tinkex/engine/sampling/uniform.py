"""The random numbers of sampling: one uniform for each (seed, sample, step).

A sequence's numbers depend on nothing else, so its tokens do not change with its company in the
batch. Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"): seed and sample are its key, the step its place in the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 64


class UniformStream:
    """Uniforms in [0, 1) of one sample, in the order of its steps.

    Args:
        seed: of the request.
        sample: which of its samples.
        start: the first step.
    """

    __slots__ = ("_block", "_generator", "_used")

    def __init__(self, seed: int, sample: int, start: int = 0) -> None:
        key = np.array([seed % 2**64, sample], dtype=np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=key))
        self._block: list[float] = []
        self._used = 0
        for _ in range(start):
            self.draw()

    def draw(self) -> float:
        """Give the next step's number."""
        if self._used == len(self._block):
            self._block = self._generator.random(_BLOCK).tolist()
            self._used = 0
        self._used += 1
        return self._block[self._used - 1]

    def first(self, count: int) -> NDArray[np.float64]:
        """Give the first `count` steps' numbers at once, of a stream that gave none yet."""
        return self._generator.random(count)
