"""The bootstrap worker: a node of the DHT that others begin with, and nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Protocol

from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.base import Worker
from tinkex.mesh.workers.discovery import Discovery


class BootstrapMember(Protocol):
    """What a bootstrap worker needs of the worker that it is."""

    @property
    def discovery(self) -> Discovery:
        """Its place in the DHT."""


class BootstrapWorker(Worker):
    """Announces itself, so that others may know where to begin.

    Args:
        member: the worker that it is, open.
    """

    def __init__(self, member: BootstrapMember) -> None:
        super().__init__("bootstrap")
        self._member = member

    async def open(self, stack: AsyncExitStack) -> None:
        """Announce; see `Worker.open`."""
        await self._member.discovery.announce(Role.BOOTSTRAP.value, Offer())
        stack.push_async_callback(self._member.discovery.withdraw, Role.BOOTSTRAP.value)
