"""The same tests over every back end: each is a way to make transports that reach one another."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tinkex._clock import SystemClock
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.base import Link, Transport
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.memory import MemoryNetwork
from tinkex.mesh.transport.tls import TlsTransport
from tinkex.testing.network import SimNetwork, Weather

PATIENCE_S = 60.0


class Hurrying(SystemClock):
    """Time limits are a tenth of what they are once it `hurries`: where all of one passes."""

    hurries = False

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 10 if self.hurries else seconds)


class Backend:
    """Makes transports of one kind, and stops them at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.clock = Hurrying()
        self._network = MemoryNetwork()
        if name == "simulated":  # here in real time
            self._network = SimNetwork(seed=1, weather=Weather(delay_s=(0.0, 0.001)))
        self._made: list[Transport] = []
        self._seeds = iter(range(1, 200))

    def transport(self, key_pair: KeyPair | None = None) -> Transport:
        pair = key_pair or KeyPair(next(self._seeds).to_bytes(32, "big"))
        made: Transport
        if self.name in {"memory", "simulated"}:
            made = self._network.transport(pair)
        elif self.name == "tls":
            made = TlsTransport(pair, clock=self.clock)
        else:
            made = IrohTransport(pair, clock=self.clock)
        self._made.append(made)
        return made

    async def started(self, key_pair: KeyPair | None = None) -> Transport:
        made = self.transport(key_pair)
        await made.start()
        return made

    async def linked(self) -> tuple[Link, Link]:
        """Both ends of a new link, the dialler's first."""
        dialler, listener = await self.started(), await self.started()
        near = await dialler.dial(listener.contact)
        return near, await listener.accept()

    async def stop(self) -> None:
        for made in self._made:
            await made.stop()


@pytest.fixture(params=["memory", "simulated", "tls", "iroh"])
async def backend(request) -> AsyncIterator[Backend]:
    made = Backend(request.param)
    watchdog = asyncio.get_running_loop().call_later(PATIENCE_S, cancel_everything)
    yield made
    await made.stop()
    watchdog.cancel()


def cancel_everything() -> None:
    for task in asyncio.all_tasks():
        task.cancel("nothing happened for too long")
