"""The double that workers' unit tests find one another on."""

import pytest
from mesh_trust import TestNetwork

from tinkex.errors import TrustError
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.workers.discovery import Discovery
from tinkex.testing import VirtualClock
from tinkex.testing.discovery import MemoryDiscovery


@pytest.fixture
def board():
    return MemoryDiscovery(clock=VirtualClock())


def member(board, role):
    peer = TestNetwork(VirtualClock().now()).peer(role)
    return board.member(Contact(peer.peer_id, ("memory:x",)), peer.certificate)


async def test_what_one_announces_another_finds_until_it_is_withdrawn(board):
    processor: Discovery = member(board, Role.PROCESSOR)
    gateway: Discovery = member(board, Role.GATEWAY)
    await processor.announce("model:a", Offer(free_slots=1))
    await processor.announce("model:a", Offer(free_slots=2))
    (found,) = await gateway.lookup("model:a")
    assert (found.free_slots, found.contact.addresses) == (2, ("memory:x",))
    await processor.withdraw("model:a")
    await processor.withdraw("model:a")
    assert await gateway.lookup("model:a") == ()


async def test_double_refuses_what_the_mesh_refuses(board):
    with pytest.raises(TrustError, match="may not announce"):
        await member(board, Role.PROCESSOR).announce("gateway", Offer())


async def test_nobody_is_found_while_it_is_unreachable_or_after_a_drop(board):
    gateway = member(board, Role.GATEWAY)
    await gateway.announce("gateway", Offer())
    board.reachable = False
    assert await gateway.lookup("gateway") == ()
    board.reachable = True
    (found,) = await gateway.lookup("gateway")
    board.drop(found.contact)
    assert await gateway.lookup("gateway") == ()
