"""What goes wrong in a simulated mesh: drawn from its seed, one after the other and at once."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from random import Random

from tinkex.errors import TinkerError
from tinkex.mesh.api.processor import ProcessorApi
from tinkex.testing.network import CALM, Weather

STORM = Weather(delay_s=(0.001, 0.08), stall_share=0.03, stall_s=(0.05, 0.9), break_every_s=12.0)
SKEW_S = 30.0
"""Two clocks are a minute apart at most."""
KINDS = {
    "kill": 4,
    "strike": 1,
    "topple": 1,
    "partition": 3,
    "storm": 2,
    "skew": 2,
    "pause": 2,
    "cut": 2,
    "steal": 3,
}


class Chaos:
    """Faults, for a while; then everything is made good.

    Args:
        world: what it happens to.
        every_s: between two faults, in the mean.
        kinds: which, with their weights.
    """

    def __init__(self, world, *, every_s=3.0, kinds=KINDS):
        self.world, self.every_s, self.kinds = world, every_s, kinds
        self.rng = Random(f"{world.seed}/chaos")
        self.done = []
        self._tasks = []

    async def run(self, seconds):
        """Do harm for a while."""
        clock = self.world.clock
        end = clock.monotonic() + seconds
        while True:
            await clock.sleep(self.rng.expovariate(1 / self.every_s))
            if clock.monotonic() > end:
                return
            (kind,) = self.rng.choices(list(self.kinds), list(self.kinds.values()))
            self._tasks.append(asyncio.create_task(getattr(self, kind)(), name=kind))

    async def over(self):
        """Wait for the end of what was begun, and make good what is left."""
        await asyncio.gather(*self._tasks)
        self.world.network.heal()
        self.world.network.weather = CALM

    def note(self, *what):
        self.done.append((round(self.world.clock.monotonic(), 3), *what))

    async def kill(self):
        await self._kill(self.rng.choice(self.world.nodes))

    async def strike(self):
        """Kill a processor in mid-stream."""
        await self._kill_one([n for n in self.world.processors if n.up and n.backend.running])

    async def topple(self):
        """Kill a gateway in the middle of a request."""
        await self._kill_one([n for n in self.world.gateways if n.up and n.inner.in_progress])

    async def _kill_one(self, nodes):
        if nodes:
            await self._kill(self.rng.choice(nodes))

    async def _kill(self, node):
        power, pause = self.rng.random() < 0.3, self.rng.uniform(0.2, 8.0)
        if node.process.stopped:
            return
        self.note("kill", node.name, "power" if power else "")
        node.kill(power=power)
        await self.world.clock.sleep(pause)
        await node.start()
        self.note("back", node.name)

    async def pause(self):
        node, seconds = self.rng.choice(self.world.nodes), self.rng.uniform(0.1, 5.0)
        process = node.process
        if process.stopped:
            return
        self.note("pause", node.name)
        process.stop()
        await self.world.clock.sleep(seconds)
        process.go_on()
        self.note("go on", node.name)

    async def partition(self):
        apart = [node for node in self.world.nodes if self.rng.random() < 0.4]
        seconds = self.rng.uniform(0.5, 10.0)
        self.note("partition", *(node.name for node in apart))
        self.world.network.partition([], [node.peer_id for node in apart])
        await self.world.clock.sleep(seconds)
        self.world.network.heal()
        self.note("heal")

    async def cut(self):
        """Break every link between two workers, once."""
        one, other = self.rng.sample(self.world.nodes, 2)
        self.note("cut", one.name, other.name)
        self.world.network.break_links(one.peer_id, other.peer_id)

    async def steal(self):
        """Show a permit that was used once more, from a gateway that somebody broke into."""
        if not self.world.watch.seen:
            return
        owner, work = self.rng.choice(self.world.watch.seen)
        thieves = [node for node in self.world.gateways if node.up]
        own = [node for node in thieves if node.peer_id == owner]
        if not thieves:
            return
        node = self.rng.choice(own if own and self.rng.random() < 0.8 else thieves)
        target = self.rng.choice(self.world.processors)
        self.note("steal", node.name, target.name)

        async def ask():
            events = node.member.peers.stream(
                target.contact, ProcessorApi.rpc_complete, work, timeout_s=5.0
            )
            async with aclosing(events):
                async for _ in events:
                    pass

        with contextlib.suppress(TinkerError):  # what is served in spite of all, the watch tells
            await node.inside(ask())

    async def storm(self):
        seconds = self.rng.uniform(1.0, 10.0)
        self.note("storm")
        self.world.network.weather = STORM
        await self.world.clock.sleep(seconds)
        self.world.network.weather = CALM

    async def skew(self):
        node = self.rng.choice(self.world.nodes)
        node.clock.skew_s = self.rng.uniform(-SKEW_S, SKEW_S)
        self.note("skew", node.name, round(node.clock.skew_s, 3))
