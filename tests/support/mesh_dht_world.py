"""Whole nodes of the DHT over memory links, on a clock that tests move."""

import asyncio
from random import Random

from mesh_rpc import World, settled

from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.node import DhtNode
from tinkex.mesh.roles import Role


class DhtWorld(World):
    """Nodes of one network. Use it as `async with DhtWorld() as world`."""

    def __post_init__(self):
        super().__post_init__()
        self.nodes = []
        self.seed = 0

    async def __aexit__(self, *exc_info):
        await self.finish(asyncio.gather(*(node.stop() for node in self.nodes)))
        await super().__aexit__(*exc_info)

    async def node(self, role=Role.PROCESSOR, *, bootstrap=None, config=None, kind=DhtNode):
        """Start a node; it knows the first one, or whom it is told."""
        peers = await self.peer(role)
        return await self.node_of(peers, bootstrap=bootstrap, config=config, kind=kind)

    async def node_of(self, peers, *, bootstrap=None, config=None, kind=DhtNode, clock=None):
        self.seed += 1
        options = {
            "clock": clock or self.clock,
            "rng": Random(self.seed),
            "config": config or DhtConfig(),
        }
        node = kind(peers, **options)
        if bootstrap is None:
            bootstrap = [self.nodes[0]._peers.contact] if self.nodes else []
        await self.finish(node.start(bootstrap))
        self.nodes.append(node)
        return node

    async def network(self, count, role=Role.PROCESSOR):
        """Start some nodes that know one another."""
        return [await self.node(role) for _ in range(count)]

    async def crash(self, node):
        """Let a node vanish without a word."""
        await self.crash_peers(node._peers)

    async def crash_peers(self, peers):
        await peers._transport.stop()
        await settled()

    async def finish(self, work, within=20.0):
        """Move the clock until `work` is done, and give what came of it."""
        task = asyncio.ensure_future(work)
        waited = 0.0
        await settled()
        while not task.done():
            assert waited < within, "it takes too long"
            self.clock.advance(0.05)
            waited += 0.05
            await settled()
        return task.result()


def node_with(service):
    """Make a class of nodes that answer as a service of the test does."""

    class Lying(DhtNode):
        def _make_service(self):
            honest = super()._make_service()
            liar = object.__new__(service)
            vars(liar).update(vars(honest))
            return liar

    return Lying
