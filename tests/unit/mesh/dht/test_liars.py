"""Members of the network that answer with nonsense, with nothing, or with lies."""

import asyncio

import msgspec
import pytest
from mesh_dht import some_nodes
from mesh_dht_world import DhtWorld, node_with

from tinkex.errors import EngineError
from tinkex.mesh.dht.api import DhtApi, FoundNodes, FoundValue, Store, Told, told
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.records import Offer, make_record
from tinkex.mesh.dht.service import DhtService
from tinkex.mesh.dht.storage import Verdict
from tinkex.mesh.roles import Role


class Nonsense(msgspec.Struct):
    """What no caller asked for."""

    what: str = "?"


class Garbage(DhtService):
    """Answers what is no answer."""

    async def rpc_find_node(self, request, call):
        return Nonsense()

    async def rpc_find_value(self, request, call):
        return Nonsense()


class Silent(DhtService):
    """Never answers."""

    async def rpc_find_node(self, request, call):
        await asyncio.Event().wait()

    async def rpc_find_value(self, request, call):
        await asyncio.Event().wait()


class Broken(DhtService):
    """Fails."""

    async def rpc_find_node(self, request, call):
        raise EngineError("no")

    async def rpc_find_value(self, request, call):
        raise EngineError("no")


class Crowd(DhtService):
    """Tells of as many nodes as a frame takes."""

    many = tuple(Told(bytes(32), ()) for _ in range(20_000))

    async def rpc_find_node(self, request, call):
        return FoundNodes(self.many)

    async def rpc_find_value(self, request, call):
        return FoundValue((), self.many)


class Inventor(DhtService):
    """Tells of nodes that are not there."""

    lies = told(some_nodes(16, seed=5))

    async def rpc_find_node(self, request, call):
        return FoundNodes(self.lies)

    async def rpc_find_value(self, request, call):
        return FoundValue((), self.lies)


class Forger(DhtService):
    """Gives records that nobody signed."""

    async def rpc_find_value(self, request, call):
        return FoundValue(tuple(b"x%d" % n for n in range(200)), ())


class Concealer(DhtService):
    """Holds everything, and shows nothing."""

    async def rpc_find_value(self, request, call):
        return FoundValue((), ())


@pytest.mark.parametrize("service", [Garbage, Silent, Broken, Crowd, Inventor, Forger, Concealer])
async def test_two_liars_among_six_hide_nothing_and_make_nothing_up(service):
    async with DhtWorld() as world:
        first = await world.node(Role.BOOTSTRAP)
        for _ in range(2):
            await world.node(kind=node_with(service))
        publisher, reader, _ = await world.network(3)
        await world.finish(publisher.announce("processor", Offer()))
        for node in (reader, first):
            began = world.clock.monotonic()
            records = await world.finish(node.lookup("processor"))
            assert [r.contact for r in records] == [publisher._peers.contact]
            assert world.clock.monotonic() - began <= 1.0


async def test_liar_that_sends_nonsense_is_no_longer_a_contact():
    async with DhtWorld() as world:
        first = await world.node()
        liar = await world.node(kind=node_with(Garbage))
        assert liar._peers.contact in first.contacts
        liar._serves = False  # who asks may be met again: here it does not say where it is
        await world.finish(first.lookup("processor"))
        assert liar._peers.contact not in first.contacts


async def test_member_that_floods_a_node_gets_little_in_and_keeps_nobody_out():
    async with DhtWorld() as world:
        node = await world.node(Role.BOOTSTRAP)
        flooder = await world.peer(Role.PROCESSOR)
        verdicts = []
        for batch in range(4):
            records = tuple(
                make_record(
                    flooder.credentials.key_pair,
                    topic=f"model:{batch}/{number}",
                    offer=Offer(),
                    addresses=("memory:x",),
                    certificate=flooder.credentials.certificate,
                    sequence=1,
                    expires_at=world.clock.now() + 45,
                    ttl_s=45.0,
                )
                for number in range(40)
            )
            put = flooder.call(node._peers.contact, DhtApi.rpc_store, Store(records), timeout_s=5)
            verdicts += (await world.finish(put)).verdicts
        limits = DhtConfig().limits
        assert verdicts.count(Verdict.STORED) == node.holding == limits.per_publisher
        assert verdicts.count(Verdict.TOO_FAST) == len(verdicts) - limits.put_burst
        publisher = await world.node()
        await world.finish(publisher.announce("processor", Offer()))
        (record,) = await world.finish(node.lookup("processor"))
        assert record.contact == publisher._peers.contact
