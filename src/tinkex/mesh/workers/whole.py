"""A whole worker: a member of the network, and what its role does on top.

Owns the order of the two, and that it stops when the process is told to.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from tinkex.mesh.workers.base import Worker
from tinkex.mesh.workers.member import Member

Build = Callable[[Member, AsyncExitStack], Awaitable[Worker]]
"""Makes what a role does; what has to be closed with it goes into the stack."""


class WholeWorker(Worker):
    """A worker that runs by itself.

    Args:
        member: its part in the network.
        build: makes what its role does, once the member is open.
    """

    def __init__(self, member: Member, build: Build) -> None:
        super().__init__(member.role.value)
        self.member = member
        self._build = build
        self.inner: Worker | None = None
        """What its role does, once it is ready."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Open the member, then start what is on top; see `Worker.open`."""
        await self.member.open(stack)
        self.inner = await self._build(self.member, stack)
        await self.inner.start()
        self.member.metrics.read(self.inner.readings)
        stack.push_async_callback(self.inner.stop)
        self.member.is_ready = lambda: self.ready

    async def drain(self, grace_s: float) -> None:
        """Stop what is on top, with grace: it is withdrawn first, and takes nothing new."""
        if self.inner is not None:
            await self.inner.stop(grace_s)


async def run_until_told(
    worker: Worker,
    *,
    grace_s: float,
    on_ready: Callable[[], None],
    on_told: Callable[[], None],
) -> None:
    """Start a worker, and stop it at SIGTERM or SIGINT; a second one ends the process at once.

    Args:
        worker: which.
        grace_s: seconds that requests in progress may go on.
        on_ready: called once it serves.
        on_told: called when it is told to stop.

    Raises:
        TinkerError: it cannot start.
    """
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell() -> None:
        if told.is_set():
            os._exit(1)
        told.set()
        on_told()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    waiting = asyncio.create_task(told.wait(), name="wait for a signal")
    starting = asyncio.create_task(worker.start(), name=f"start {worker.name}")
    try:
        await asyncio.wait({waiting, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            on_ready()
            await waiting
    finally:
        waiting.cancel()
        await worker.stop(grace_s)
        await asyncio.gather(waiting, starting, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
