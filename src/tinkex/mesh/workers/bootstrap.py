"""The bootstrap worker: a node of the DHT that others begin with, and nothing else."""

from __future__ import annotations

from contextlib import AsyncExitStack

from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.base import Linked, Worker


class BootstrapWorker(Worker):
    """Announces itself, so that others may know where to begin.

    Args:
        member: the worker that it is, open.
    """

    def __init__(self, member: Linked) -> None:
        super().__init__("bootstrap")
        self._member = member

    async def open(self, stack: AsyncExitStack) -> None:
        """Announce; see `Worker.open`."""
        await self._member.discovery.announce(Role.BOOTSTRAP.value, Offer())
        stack.push_async_callback(self._member.discovery.withdraw, Role.BOOTSTRAP.value)
