"""Calls through bad weather in virtual time: stalls, lost links, partitions, crashes, restarts.

Whatever happens, a stream is a beginning of what was sent, nothing lost, doubled or out of order;
a call ends in time, in its reply or a typed error; and after the weather everybody is called again.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from random import Random

import pytest
from mesh_rpc import Answer, Ask
from mesh_trust import TestNetwork

from tinkex.errors import MeshError, PeerTimeoutError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.rpc.service import Call, Service, callable_by
from tinkex.testing.network import SimNetwork, Weather
from tinkex.testing.simulation import SimulatedClock, simulate

STORM = Weather(delay_s=(0.001, 0.05), stall_share=0.02, stall_s=(0.1, 0.9), break_every_s=15.0)
CALM = Weather(delay_s=(0.001, 0.02))
TIMEOUT_S = 8.0
SERVERS, CLIENTS = 4, 4


class Paced(Service):
    """Gives numbers at a pace, and counts what runs."""

    service = "paced"

    def __init__(self, clock):
        self.clock = clock
        self.running = 0

    @callable_by(CERTIFIED)
    async def rpc_echo(self, request: Ask, call: Call) -> Answer:
        await self.clock.sleep(0.01)
        return Answer(request.text, request.count)

    @callable_by(CERTIFIED)
    async def rpc_numbers(self, request: Ask, call: Call) -> AsyncIterator[Answer]:
        self.running += 1
        try:
            for number in range(request.count):
                await self.clock.sleep(0.02 if number % 3 else 0.0)
                yield Answer("x" * request.size, number)
        finally:
            self.running -= 1


class Sea:
    """Peers in one simulated network."""

    def __init__(self, seed):
        self.rng = Random(f"{seed}/sea")
        self.clock = SimulatedClock()
        self.network = SimNetwork(seed=seed, weather=STORM)
        self.trust = TestNetwork(self.clock.now())
        self.services = {}
        self.peers = {}
        self.seen = {"whole": 0, "cut": 0, "replies": 0, "errors": 0}

    async def start(self, number):
        role = Role.PROCESSOR if number < SERVERS else Role.GATEWAY
        key_pair = KeyPair(bytes([number + 1]) * 32)
        encoded = self.trust.peer(role, key_pair).encoded
        credentials = Credentials(key_pair, self.trust.network, self.trust.roots, encoded)
        peers = Peers(self.network.transport(key_pair), credentials, clock=self.clock)
        self.services[number] = Paced(self.clock)
        peers.serve(self.services[number])
        await peers.start()
        self.peers[number] = peers

    def servers(self):
        return [self.peers[number] for number in range(SERVERS)]

    async def use(self, number, until_s):
        """One client's calls and streams, one after the other."""
        rng, client = Random(f"{number}/{self.rng.random()}"), self.peers[number]
        for turn in itertools.count():
            if self.clock.monotonic() > until_s:
                return
            target = rng.choice(self.servers()).contact
            began = self.clock.monotonic()
            try:
                if rng.random() < 0.5:
                    await self.ask(client, target, turn)
                else:
                    await self.read(client, target, rng)
            except MeshError as error:
                self.seen["errors"] += 1
                late = isinstance(error, PeerTimeoutError)
                assert self.clock.monotonic() - began <= TIMEOUT_S + (0.1 if late else 0.0)
                await self.clock.sleep(0.1)

    async def ask(self, client, target, turn):
        asked = Ask("x" * (turn % 7) * 20_000, turn)
        reply = await client.call(target, Paced.rpc_echo, asked, timeout_s=TIMEOUT_S)
        assert reply == Answer(asked.text, turn)
        self.seen["replies"] += 1

    async def reach(self, client, target):
        """Call until it succeeds: a link of the storm may still end, and one more."""
        for _ in range(2):
            with contextlib.suppress(MeshError):
                return await self.calm(client, target)
            await self.clock.sleep(1)
        return await self.calm(client, target)

    async def calm(self, client, target):
        reply = await client.call(target, Paced.rpc_echo, Ask("calm"), timeout_s=TIMEOUT_S)
        assert reply == Answer("calm")

    async def read(self, client, target, rng):
        asked = Ask(count=rng.randint(1, 120), size=rng.choice([1, 100, 3000]))
        seen = []
        replies = client.stream(target, Paced.rpc_numbers, asked, timeout_s=TIMEOUT_S)
        try:
            async for reply in replies:
                seen.append(reply.number)
                if rng.random() < 0.005:
                    break
            else:
                assert len(seen) == asked.count
                self.seen["whole"] += 1
        finally:
            await replies.aclose()
            self.seen["cut"] += len(seen) < asked.count
            assert seen == list(range(len(seen)))


async def storm(seed, until_s=18.0):
    """Some of it; returns what was seen, and the network's fingerprint."""
    sea = Sea(seed)
    for number in range(SERVERS + CLIENTS):
        await sea.start(number)
    users = [
        asyncio.create_task(sea.use(number, until_s))
        for number in range(SERVERS, SERVERS + CLIENTS)
    ]
    await sea.clock.sleep(3)
    sea.network.partition([], [sea.peers[0].peer_id, sea.peers[SERVERS].peer_id])
    await sea.clock.sleep(4)
    sea.network.heal()
    await sea.clock.sleep(2)
    power = sea.rng.random() < 0.5
    sea.network.crash(sea.peers[1].peer_id, power=power)
    await sea.peers[1].stop()
    await sea.clock.sleep(2)
    await sea.start(1)
    await asyncio.gather(*users)
    sea.network.weather = CALM
    await sea.clock.sleep(5)
    for client in range(SERVERS, SERVERS + CLIENTS):
        for server in sea.servers():
            await sea.reach(sea.peers[client], server.contact)
    assert sum(service.running for service in sea.services.values()) == 0
    for peers in sea.peers.values():
        await peers.stop(grace_s=1)
    return sea.seen, sea.network.fingerprint


def test_streams_and_calls_are_right_through_a_storm_and_the_same_again():
    seen, fingerprint = simulate(storm(1, 12.0), seed=1)
    assert min(seen.values()) > 0, "the storm must reach everything"
    assert simulate(storm(1, 12.0), seed=1) == (seen, fingerprint)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
def test_streams_and_calls_are_right_through_many_storms(seed):
    simulate(storm(seed), seed=seed)
