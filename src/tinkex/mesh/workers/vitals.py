"""How a worker is: what it tells other workers, and operators, of itself.

Owns the answer to `health.status`. Knows nothing of users: names of models are all there is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinkex._clock import Clock
from tinkex._version import __version__
from tinkex.mesh.api.health import HealthApi, Status, StatusQuery
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker does just now."""

    load: float = 0.0
    """Share of its slots in use, 0 to 1."""
    models: tuple[str, ...] = ()
    adapters: int = 0
    trouble: str = ""
    """Why it refuses everybody; empty where it does not."""


class Vitals(HealthApi):
    """Tells how one worker is.

    Args:
        role: the worker's.
        ready: whether it serves.
        work: what it does.
        links: to how many peers it is connected.
        calls: how many calls it has answered.
        certified_until: when its certificate ends, in unix seconds.
        clock: tells time.
    """

    def __init__(
        self,
        role: Role,
        *,
        ready: Callable[[], bool],
        work: Callable[[], Work],
        links: Callable[[], int],
        calls: Callable[[], int],
        certified_until: Callable[[], float],
        clock: Clock,
    ) -> None:
        self._role = role
        self._ready, self._work, self._links, self._calls = ready, work, links, calls
        self._certified_until = certified_until
        self._clock = clock
        self._started = clock.monotonic()

    def status(self) -> Status:
        """Say how the worker is."""
        work = self._work()
        return Status(
            role=self._role.value,
            version=__version__,
            uptime_s=self._clock.monotonic() - self._started,
            ready=self._ready() and not work.trouble,
            detail=work.trouble,
            load=work.load,
            models=work.models,
            adapters=work.adapters,
            links=self._links(),
            requests=self._calls(),
            memory_bytes=resident_bytes(),
            certified_until=self._certified_until(),
        )

    async def rpc_status(self, request: StatusQuery, call: Call) -> Status:  # noqa: ARG002 - of the API
        """Answer another member."""
        return self.status()


def resident_bytes() -> int:
    """Return this process's resident memory; 0 where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
