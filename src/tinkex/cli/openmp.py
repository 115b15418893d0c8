"""How long OpenMP's threads wait for work: set before PyTorch is imported, or not at all."""

from __future__ import annotations

import os

_SPINS = 20_000
"""Half a millisecond: more than the pauses between the products of a step."""


def wait_briefly() -> None:
    """Let OpenMP's threads sleep soon after a step: for commands that serve.

    They spin while they wait. libgomp, which PyTorch brings on Linux, has them do so 300,000 times:
    9 ms after each step, on the cores of those who hand its tokens on and ask for the next. What
    whoever runs the process has set stays as it is.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(_SPINS)
