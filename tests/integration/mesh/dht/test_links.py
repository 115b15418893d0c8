"""Nodes of the DHT over real links on this machine's loopback, and the machine's own clock.

A machine that does much else lets requests run out of time, so lookups are made until they find
what they must. How soon one does is another matter: the unit tests have it, in virtual time.
"""

import asyncio

import pytest
from mesh_trust import TestNetwork

from tinkex._clock import SystemClock
from tinkex.mesh.dht.node import DhtNode
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport

PATIENCE_S = 60.0


def transport_of(name, key_pair, clock):
    if name == "tls":
        return TlsTransport(key_pair, bind=("127.0.0.1:0",), clock=clock)
    return IrohTransport(key_pair, bind=("127.0.0.1:0",), clock=clock)


@pytest.fixture(params=["tls", "iroh"])
async def network(request):
    trust = TestNetwork(SystemClock().now())
    nodes = []

    async def add(role=Role.PROCESSOR):
        peer = trust.peer(role)
        clock = SystemClock()
        transport = transport_of(request.param, peer.key_pair, clock)
        credentials = Credentials(
            peer.key_pair, trust.network, trust.roots, peer.encoded, trust.is_revoked
        )
        peers = Peers(transport, credentials, clock=clock)
        await peers.start()
        nodes.append(DhtNode(peers, clock=clock))
        await nodes[-1].start([nodes[0]._peers.contact] if nodes[:-1] else [])
        return nodes[-1]

    try:
        yield add
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))
        await asyncio.gather(*(node._peers.stop() for node in nodes))


async def finds(node, topic, contacts):
    """Look up until these are found, and nobody else; return their records."""
    records = await node.lookup(topic)
    while {record.contact for record in records} != contacts:
        await SystemClock().sleep(0.1)
        records = await node.lookup(topic)
    return records


async def test_workers_announce_find_one_another_and_leave(network):
    async with asyncio.timeout(PATIENCE_S):
        boot = await network(Role.BOOTSTRAP)
        processors = [await network(Role.PROCESSOR) for _ in range(3)]
        gateway = await network(Role.GATEWAY)
        offer = Offer(models=("tinkex/sprout",), free_slots=2)
        await asyncio.gather(*(node.announce("model:tinkex/sprout", offer) for node in processors))
        contacts = {node._peers.contact for node in processors}
        records = await finds(gateway, "model:tinkex/sprout", contacts)
        assert {record.models for record in records} == {("tinkex/sprout",)}
        await processors[0].stop()
        await finds(boot, "model:tinkex/sprout", contacts - {processors[0]._peers.contact})


async def test_lookup_finds_its_way_past_a_node_that_vanished(network):
    async with asyncio.timeout(PATIENCE_S):
        nodes = [await network() for _ in range(5)]
        await nodes[1].announce("processor", Offer())
        await nodes[2]._peers._transport.stop()
        await finds(nodes[3], "processor", {nodes[1]._peers.contact})
