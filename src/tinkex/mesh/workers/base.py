"""The life of a worker: started once, ready, stopped once, and nothing left behind.

Owns the order of these and what happens when they cross. What a worker opens it enters into an exit
stack as it goes, so that a start that fails or is cancelled closes exactly what was opened.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import Protocol, Self

from tinkex._clock import Clock
from tinkex.errors import MeshError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.workers.discovery import Discovery
from tinkex.mesh.workers.reading import Reading


class WorkerState(StrEnum):
    """Where a worker is in its life; it never goes back."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Linked(Protocol):
    """What a role needs of the worker that it is part of: `member.Member`, or a test's own."""

    @property
    def key_pair(self) -> KeyPair:
        """The worker's own."""

    @property
    def peers(self) -> Peers:
        """Its calls."""

    @property
    def discovery(self) -> Discovery:
        """Finds others."""

    @property
    def clock(self) -> Clock:
        """Tells the time."""


class Worker(ABC):
    """Base of the workers.

    A subclass opens in `open` all it needs, and enters it into the stack in the order of opening:
    it is closed backwards.

    Args:
        name: what it is called in logs and errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._state = WorkerState.NEW
        self._stack = AsyncExitStack()
        self._starting: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._ready = asyncio.Event()

    @abstractmethod
    async def open(self, stack: AsyncExitStack) -> None:
        """Open what the worker needs, and enter it into the stack.

        Raises:
            TinkerError: the worker cannot start; what is in the stack is closed.
        """

    async def drain(self, grace_s: float) -> None:  # noqa: B027 - many have nothing to drain
        """Let what is in progress come to its end, for as long as `grace_s`, before the closing."""

    def readings(self) -> Iterable[Reading]:
        """What its metrics are to show of it."""
        return ()

    @property
    def state(self) -> WorkerState:
        """Where the worker is in its life."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self._state is WorkerState.READY

    async def start(self) -> None:
        """Start, and come back when the worker is ready.

        Raises:
            MeshError: it was started before, or stopped meanwhile.
            TinkerError: it cannot start; nothing of it is left, and it cannot be started again.
        """
        if self._state is not WorkerState.NEW:
            raise MeshError(
                f"the {self.name} worker is {self._state} already: a worker is started once. Make "
                "a new one"
            )
        self._state = WorkerState.STARTING
        self._starting = asyncio.create_task(self.open(self._stack), name=f"start {self.name}")
        try:
            await self._starting
        except asyncio.CancelledError:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            await self._close()
            if self._is_cancelled():
                raise
            raise MeshError(f"the {self.name} worker was stopped while it started") from None
        except BaseException:
            await self._close()
            raise
        if self._state is WorkerState.STARTING:  # else `stop` came in its last step, and closes
            self._state = WorkerState.READY
            self._ready.set()
            return
        await self._closed.wait()
        raise MeshError(f"the {self.name} worker was stopped while it started")

    async def wait_ready(self) -> None:
        """Wait until the worker serves.

        Raises:
            MeshError: it has stopped, or could not start.
        """
        waits = {asyncio.create_task(event.wait()) for event in (self._ready, self._closed)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if not self._ready.is_set() or self._closed.is_set():
            raise MeshError(f"the {self.name} worker is {self._state}, and will not be ready")

    async def stop(self, grace_s: float = 0.0) -> None:
        """Let work end for `grace_s` seconds, then close all. Harmless twice, or before `start`."""
        if self._state in {WorkerState.STOPPING, WorkerState.STOPPED}:
            await self._closed.wait()
            return
        earlier, self._state = self._state, WorkerState.STOPPING
        if earlier is WorkerState.STARTING and self._starting is not None:
            if not self._starting.done():
                self._starting.cancel()
                await self._closed.wait()  # `start` sees the cancellation, and closes
                return
        elif earlier is WorkerState.READY:
            await self.drain(grace_s)
        await self._close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _close(self) -> None:
        self._state = WorkerState.STOPPING
        try:
            await self._stack.aclose()
        finally:
            self._state = WorkerState.STOPPED
            self._closed.set()

    @staticmethod
    def _is_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
