import pytest

from tinkex.errors import ConfigurationError, LinkClosedError, PeerUnreachableError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.arrivals import BACKLOG
from tinkex.mesh.transport.base import Contact, Transport
from tinkex.mesh.transport.memory import MemoryNetwork

ALICE, BOB, EVE = KeyPair(b"a" * 32), KeyPair(b"b" * 32), KeyPair(b"e" * 32)


async def test_a_frame_goes_there_and_another_back():
    network = MemoryNetwork()
    alice: Transport = network.transport(ALICE)
    bob: Transport = network.transport(BOB)
    await alice.start()
    await bob.start()
    near = await alice.dial(bob.contact)
    far = await bob.accept()
    assert (near.remote, far.remote) == (BOB.peer_id, ALICE.peer_id)
    await near.send(b"ping")
    assert await far.receive() == b"ping"
    await far.send(b"pong")
    assert await near.receive() == b"pong"


async def test_a_peer_that_starts_again_is_where_it_was():
    network = MemoryNetwork()
    first = network.transport(ALICE)
    await first.start()
    await first.stop()
    second = network.transport(ALICE)
    assert second.contact == first.contact
    await second.start()


async def test_two_cannot_listen_at_one_address():
    network = MemoryNetwork()
    await network.transport(ALICE, address="memory:x").start()
    with pytest.raises(ConfigurationError, match="memory:x"):
        await network.transport(BOB, address="memory:x").start()


async def test_too_many_links_that_nobody_accepts_are_turned_away():
    network = MemoryNetwork()
    alice, bob = network.transport(ALICE), network.transport(BOB)
    await alice.start()
    await bob.start()
    for _ in range(BACKLOG):
        await alice.dial(bob.contact)
    with pytest.raises(PeerUnreachableError, match="too many"):
        await alice.dial(bob.contact)


async def test_addresses_of_other_transports_are_passed_over():
    network = MemoryNetwork()
    alice, bob = network.transport(ALICE), network.transport(BOB)
    await alice.start()
    await bob.start()
    addresses = ("tls:127.0.0.1:1", *bob.contact.addresses)
    assert (await alice.dial(Contact(BOB.peer_id, addresses))).remote == BOB.peer_id
    with pytest.raises(PeerUnreachableError, match="no address"):
        await alice.dial(Contact(BOB.peer_id, ("tls:127.0.0.1:1",)))


async def test_a_transport_that_does_not_run_dials_nobody():
    network = MemoryNetwork()
    alice = network.transport(ALICE)
    with pytest.raises(LinkClosedError):
        await alice.dial(alice.contact)
