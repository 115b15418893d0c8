"""What only TLS does: strangers at its sockets."""

import asyncio
import socket

import pytest
from patience import until

from tinkex._clock import SystemClock
from tinkex.errors import ConfigurationError, LinkClosedError, PeerUnreachableError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.addresses import split_address
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.transport.tls import MAX_GREETING, SCHEME, TlsTransport
from tinkex.testing import VirtualClock

ALICE, BOB = KeyPair(b"a" * 32), KeyPair(b"b" * 32)


@pytest.fixture
async def pair():
    clock = VirtualClock()
    alice, bob = TlsTransport(ALICE, clock=clock), TlsTransport(BOB, clock=clock)
    await alice.start()
    await bob.start()
    yield alice, bob, clock
    await alice.stop()
    await bob.stop()


@pytest.fixture
async def silent():
    """The address of somebody who takes connections and says nothing."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield f"tls:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.close()


def place(contact: Contact, index: int = 0) -> tuple[str, int]:
    return split_address(contact.addresses[index].removeprefix(SCHEME))


async def test_it_listens_on_both_loopbacks_and_is_reached_by_each(pair):
    alice, bob, _ = pair
    hosts = [split_address(a.removeprefix(SCHEME))[0] for a in bob.contact.addresses]
    assert hosts == ["127.0.0.1", "::1"]
    for address in bob.contact.addresses:
        link = await alice.dial(Contact(BOB.peer_id, (address,)))
        assert link.remote == BOB.peer_id
        assert (await bob.accept()).remote == ALICE.peer_id


async def test_small_frames_are_not_held_back_to_be_joined(pair):
    alice, bob, _ = pair
    for link in (await alice.dial(bob.contact), await bob.accept()):
        assert link._socket is not None
        raw = link._socket.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_who_says_nothing_is_cut_off_when_its_time_is_over(pair):
    _, bob, clock = pair
    reader, writer = await asyncio.open_connection(*place(bob.contact))
    await until(lambda: clock.waiting)
    clock.advance(5.0)
    assert await reader.read() == b""
    writer.close()


async def test_who_speaks_no_tls_is_cut_off_and_others_are_served(pair):
    alice, bob, _ = pair
    reader, writer = await asyncio.open_connection(*place(bob.contact))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert len(await reader.read()) < 20  # TLS's alert at most
    writer.close()
    await alice.dial(bob.contact)
    assert (await bob.accept()).remote == ALICE.peer_id


async def test_only_so_many_strangers_wait_at_once(pair):
    _, bob, clock = pair
    strangers = [await asyncio.open_connection(*place(bob.contact)) for _ in range(MAX_GREETING)]
    await until(lambda: clock.waiting >= MAX_GREETING)
    reader, writer = await asyncio.open_connection(*place(bob.contact))
    assert await reader.read() == b""
    for _, each in [*strangers, (reader, writer)]:
        each.close()


async def test_a_dialler_gives_up_when_its_time_is_over(pair, silent):
    alice, _, clock = pair
    dialling = asyncio.create_task(alice.dial(Contact(BOB.peer_id, (silent,))))
    await until(lambda: clock.waiting)
    clock.advance(5.0)
    with pytest.raises(PeerUnreachableError, match="in 3 seconds"):
        await dialling


async def test_the_second_address_is_tried_though_the_first_says_nothing(pair, silent):
    alice, bob, clock = pair
    addresses = (silent, *bob.contact.addresses)
    dialling = asyncio.create_task(alice.dial(Contact(BOB.peer_id, addresses)))
    await until(lambda: clock.waiting >= 2)
    clock.advance(0.25)
    assert (await dialling).remote == BOB.peer_id


async def test_stopping_while_dialling_leaves_nothing_behind(pair, silent):
    alice, _, _ = pair
    dialling = asyncio.create_task(alice.dial(Contact(BOB.peer_id, (silent,))))
    await until(lambda: alice._links)
    await alice.stop()
    with pytest.raises((PeerUnreachableError, LinkClosedError)):
        await dialling
    assert not alice._links


async def test_a_peer_that_sends_no_frame_loses_its_link_and_says_why(pair):
    alice, bob, _ = pair
    near = await alice.dial(bob.contact)
    far = await bob.accept()
    near._channel.write(b"\xff\xff\xff\xff")
    near._flush()
    with pytest.raises(LinkClosedError, match="announced a frame"):
        await far.receive()
    with pytest.raises(LinkClosedError):
        await near.receive()


@pytest.mark.parametrize("bind", ["127.0.0.1", "::1:80", "[127.0.0.1]:80", "127.0.0.1:99999"])
async def test_what_is_no_address_is_refused(bind):
    with pytest.raises(ValueError, match="no address"):
        await TlsTransport(ALICE, bind=(bind,), clock=SystemClock()).start()


async def test_a_port_that_is_taken_is_named_and_nothing_stays_open(pair):
    _, bob, clock = pair
    taken = bob.contact.addresses[0].removeprefix(SCHEME)
    third = TlsTransport(KeyPair(b"t" * 32), bind=("127.0.0.1:0", taken), clock=clock)
    with pytest.raises(ConfigurationError, match=taken):
        await third.start()
    assert third._servers == []
    await third.stop()


async def test_it_says_where_others_reach_it_if_told():
    transport = TlsTransport(
        ALICE, bind=("127.0.0.1:0",), advertise=("mesh.example:4433",), clock=SystemClock()
    )
    await transport.start()
    assert transport.contact.addresses == ("tls:mesh.example:4433",)
    await transport.stop()
    everywhere = TlsTransport(ALICE, bind=("0.0.0.0:0",), clock=SystemClock())
    with pytest.raises(ConfigurationError, match="advertise"):
        await everywhere.start()
    assert not everywhere._servers
