"""Whether a server should get requests, and why not.

Owns the phases of a server's life and what `/readyz` says of them. `/healthz` asks something else:
whether the process is worth keeping; only a broken engine is not.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinkex.server.models.bases import Bases


class Phase(Enum):
    """Where a server is in its life."""

    LOADING = "loading"
    REPLAYING = "replaying"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


WHY = {
    Phase.LOADING: "The base models are being loaded.",
    Phase.REPLAYING: "Training runs are being brought back to where they were.",
    Phase.DRAINING: "The server is stopping: it finishes what it has and takes nothing new.",
}


class Health:
    """The phase of one server.

    Args:
        bases: their engines may have failed.
    """

    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self.phase = Phase.LOADING
        """Set by whoever brings the server into it."""

    def state(self) -> tuple[Phase, str]:
        """Give the phase, and why it is that one."""
        broken = self.failure
        if broken is not None:
            return Phase.FAILED, broken
        return self.phase, WHY.get(self.phase, "")

    @property
    def failure(self) -> str | None:
        """Why the process is of no use any more; None while it is."""
        for base in self._bases:
            if base.jobs.failure is not None:
                return str(base.jobs.failure)
        return None
