"""Whole nodes in a simulated network: skewed clocks, stalls, broken links, partition, lost power.

A failure names its seed, which does the same again.
"""

import asyncio
from random import Random

import pytest
from mesh_trust import TestNetwork

from tinkex.mesh.dht.node import DhtNode
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.testing.network import SimNetwork, Weather
from tinkex.testing.simulation import SimulatedClock, simulate

STORMY = Weather(delay_s=(0.001, 0.04), stall_share=0.02, stall_s=(0.05, 0.6), break_every_s=300.0)
SKEW_S = 29.0
SETTLED_S = 75.0
"""After which everybody must be found: lost contacts are tried every 20 s and records renewed every
15 s, and what was put meanwhile, while nobody knew better, is replaced within a minute."""


class Story:
    """Nodes that come, go and are cut off. Everything is drawn from the seed."""

    def __init__(self, seed):
        self.rng = Random(seed)
        self.network = SimNetwork(seed=seed, weather=STORMY)
        self.trust = TestNetwork(SimulatedClock().now())
        self.nodes = {}

    async def start(self, name):
        pair = KeyPair(name.to_bytes(32, "big"))
        peer = self.trust.peer(Role.PROCESSOR, pair)
        clock = SimulatedClock(skew_s=self.rng.uniform(-SKEW_S, SKEW_S))
        credentials = Credentials(pair, self.trust.network, self.trust.roots, peer.encoded)
        peers = Peers(self.network.transport(pair), credentials, clock=clock)
        await peers.start()
        known = [node._peers.contact for node in list(self.nodes.values())[:2]]
        node = DhtNode(peers, clock=clock, rng=Random(self.rng.random()))
        await node.start(known)
        self.nodes[name] = node
        await node.announce("processor", Offer())
        await node.announce(f"model:{name}", Offer())

    async def crash(self, name):
        node = self.nodes.pop(name)
        self.network.crash(node._peers.peer_id, power=True)
        await node.stop()
        await node._peers.stop()

    async def end(self):
        for node in self.nodes.values():
            await node.stop()
        for node in self.nodes.values():
            await node._peers.stop()

    async def seen_by(self, reader, topic):
        found = await self.nodes[reader].lookup(topic)
        return {r.contact.peer_id for r in found}

    async def everybody_finds(self, readers, publishers):
        wanted = {self.nodes[name]._peers.peer_id for name in publishers}
        for reader in readers:
            assert await self.seen_by(reader, "processor") == wanted, f"{reader} looks for all"
            for name in publishers:
                own = {self.nodes[name]._peers.peer_id}
                assert await self.seen_by(reader, f"model:{name}") == own, f"{reader}: {name}"


async def pause(seconds):
    await SimulatedClock().sleep(seconds)


async def calamities(seed, count):
    story = Story(seed)
    for name in range(1, count + 1):
        await story.start(name)
    await pause(30)
    everybody = list(story.nodes)
    await story.everybody_finds(everybody, everybody)

    story.rng.shuffle(everybody)
    left, right = everybody[: count // 2], everybody[count // 2 :]
    halves = [[story.nodes[name]._peers.peer_id for name in half] for half in (left, right)]
    story.network.partition(*halves)
    await pause(story.rng.uniform(60, 200))
    await story.everybody_finds(left, left)
    await story.everybody_finds(right, right)

    gone = [left.pop(), right.pop()]
    for name in gone:
        await story.crash(name)
    story.network.heal()
    await pause(SETTLED_S)
    await story.everybody_finds(story.nodes, left + right)

    await story.start(gone[0])
    await pause(2.5)
    await story.everybody_finds(story.nodes, [*left, *right, gone[0]])
    await asyncio.wait_for(story.end(), 60)


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 6), *(pytest.param(seed, 14, marks=pytest.mark.soak) for seed in range(2, 14))],
)
def test_every_lookup_is_right_again_after_calamities(seed, count):
    simulate(calamities(seed, count), seed=seed)
