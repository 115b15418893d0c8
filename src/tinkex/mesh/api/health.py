"""What any member of the network may ask of any other: how are you."""

from __future__ import annotations

from abc import abstractmethod

import msgspec

from tinkex.mesh.roles import CERTIFIED
from tinkex.mesh.rpc.service import Call, Service, callable_by


class StatusQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask how a worker is."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is; nothing of users."""

    role: str
    version: str
    """Of tinkex."""
    uptime_s: float
    ready: bool
    detail: str = ""
    """Why it is not ready."""
    load: float = 0.0
    """Share of its slots that are in use."""
    models: tuple[str, ...] = ()
    adapters: int = 0
    """How many are loaded."""
    links: int = 0
    """Peers that it is connected to."""
    requests: int = 0
    """Calls that it has answered."""
    memory_bytes: int = 0
    """Resident memory of its process."""
    certified_until: float = 0.0
    """Unix seconds: when its role certificate ends, unless it is renewed before."""


class HealthApi(Service):
    """Implemented by every worker."""

    service = "health"

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_status(self, request: StatusQuery, call: Call) -> Status:
        """Say how it is."""
