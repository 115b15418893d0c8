"""What only iroh does: what it binds, peers that vanish, strangers."""

import asyncio
import socket
import sys

import pytest
from iroh import iroh_ffi

from tinkex._clock import SystemClock
from tinkex.errors import (
    ConfigurationError,
    LinkClosedError,
    MissingPackageError,
    PeerUnreachableError,
)
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport import iroh
from tinkex.mesh.transport.addresses import split_address
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.transport.frames import enframe
from tinkex.mesh.transport.iroh import SCHEME, IrohTransport
from tinkex.mesh.transport.iroh_link import describe
from tinkex.mesh.transport.iroh_streams import is_direct, streams_of
from tinkex.testing import VirtualClock

ALICE, BOB = KeyPair(b"a" * 32), KeyPair(b"b" * 32)


@pytest.fixture
async def pair():
    alice = IrohTransport(ALICE, clock=SystemClock())
    bob = IrohTransport(BOB, clock=SystemClock())
    await alice.start()
    await bob.start()
    yield alice, bob
    await alice.stop()
    await bob.stop()


async def raw_connection(bob: IrohTransport) -> tuple[iroh_ffi.Endpoint, iroh_ffi.Connection]:
    """Somebody with a key, who then does what a test wants."""
    builder = iroh_ffi.EndpointBuilder()
    builder.apply_minimal()
    builder.relay_mode(iroh_ffi.RelayMode.disabled())
    builder.bind_addr("127.0.0.1:0")
    builder.bind_addr("[::1]:0")
    endpoint = await builder.bind()
    address = iroh_ffi.EndpointAddr(
        iroh_ffi.EndpointId.from_bytes(BOB.peer_id.raw),
        None,
        [a.removeprefix(SCHEME) for a in bob.contact.addresses],
    )
    return endpoint, await endpoint.connect(address, b"tinkex-mesh/1")


@pytest.mark.parametrize(
    ("bind", "hosts"),
    [
        (("127.0.0.1:0", "[::1]:0"), ["127.0.0.1", "::1"]),
        (("127.0.0.1:0",), ["127.0.0.1"]),
        (("[::1]:0",), ["::1"]),
        (("[0:0::1]:0",), ["::1"]),
    ],
)
async def test_it_listens_on_loopback_and_nowhere_else(bind, hosts):
    transport = IrohTransport(ALICE, bind=bind, clock=SystemClock())
    await transport.start()
    places = [split_address(a.removeprefix(SCHEME)) for a in transport.contact.addresses]
    assert transport._endpoint is not None
    bound = [split_address(text) for text in transport._endpoint.bound_sockets()]
    await transport.stop()
    assert [host for host, _ in places] == hosts
    assert set(places) <= set(bound)
    assert sorted(host for host, _ in bound) == ["127.0.0.1", "::1"]


async def test_each_address_leads_to_it(pair):
    alice, bob = pair
    for address in bob.contact.addresses:
        link = await alice.dial(Contact(BOB.peer_id, (address,)))
        far = await bob.accept()
        await far.send(b"hello")
        assert await link.receive() == b"hello"


async def test_its_ports_are_free_when_it_has_stopped():
    first = IrohTransport(ALICE, clock=SystemClock())
    await first.start()
    bind = [a.removeprefix(SCHEME) for a in first.contact.addresses]
    with pytest.raises(ConfigurationError, match=r"cannot listen at 127\.0\.0\.1"):
        await IrohTransport(BOB, bind=bind, clock=SystemClock()).start()
    await first.stop()
    second = IrohTransport(ALICE, bind=bind, clock=SystemClock())
    await second.start()
    assert second.contact == Contact(ALICE.peer_id, tuple(SCHEME + a for a in bind))
    await second.stop()


PEER = """
import asyncio, sys
from tinkex._clock import SystemClock
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.iroh import IrohTransport

async def main():
    transport = IrohTransport(KeyPair(b"b" * 32), clock=SystemClock())
    await transport.start()
    print(*transport.contact.addresses, flush=True)
    while True:
        link = await transport.accept()
        await link.send(await link.receive())

asyncio.run(main())
"""


async def test_a_peer_that_was_killed_is_reached_where_it_starts_again():
    """Though the link to its past looks open: nothing has told this side yet."""
    alice = IrohTransport(ALICE, clock=SystemClock())
    await alice.start()
    old = None
    for message in (b"first", b"second"):
        peer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PEER, stdout=asyncio.subprocess.PIPE
        )
        assert peer.stdout is not None
        addresses = (await peer.stdout.readline()).decode().split()
        link = await alice.dial(Contact(BOB.peer_id, tuple(addresses)))
        await link.send(message)
        assert await link.receive() == message
        peer.kill()
        await peer.wait()
        assert old is None or old.closed
        old = link
    await alice.stop()


async def test_a_peer_that_sends_no_frame_loses_its_link(pair):
    _, bob = pair
    endpoint, connection = await raw_connection(bob)
    stream = await connection.open_bi()
    await stream.send().write_all(b"\x01")
    far = await bob.accept()
    await stream.send().write_all(b"\xff\xff\xff\xff")
    with pytest.raises(LinkClosedError, match="announced a frame"):
        await far.receive()
    await connection.closed()
    await endpoint.close()


async def test_who_greets_wrongly_is_nobody(pair):
    _, bob = pair
    endpoint, connection = await raw_connection(bob)
    stream = await connection.open_bi()
    await stream.send().write_all(b"GET / HTTP/1.1")
    assert "greeting" in await connection.closed()
    assert not bob._links
    await endpoint.close()


async def test_who_connects_and_says_nothing_is_cut_off_when_its_time_is_over():
    clock = VirtualClock()
    bob = IrohTransport(BOB, clock=clock)
    await bob.start()
    endpoint, connection = await raw_connection(bob)
    closed = asyncio.ensure_future(connection.closed())
    while not closed.done():  # whatever waited first: the greeting's time may begin after it
        clock.advance(5.0)
        await asyncio.sleep(0.001)  # noqa: TID251 - iroh's threads work in real time
    assert "by peer: greeting" in await closed
    await endpoint.close()
    await bob.stop()


async def test_strangers_beyond_those_that_are_greeted_are_turned_away(pair, monkeypatch):
    alice, bob = pair
    monkeypatch.setattr(iroh, "MAX_GREETING", 0)
    with pytest.raises(PeerUnreachableError, match="refused"):
        await alice.dial(bob.contact)
    monkeypatch.undo()
    await alice.dial(bob.contact)


async def test_stopping_while_dialling_leaves_nothing_behind(pair):
    alice, _ = pair
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"iroh:127.0.0.1:{silent.getsockname()[1]}"
        dialling = asyncio.create_task(alice.dial(Contact(BOB.peer_id, (address,))))
        await asyncio.to_thread(silent.recv, 1)  # its first packet
        await alice.stop()
        with pytest.raises((PeerUnreachableError, LinkClosedError)):
            await dialling
    assert not alice._links


async def test_a_second_address_of_one_family_is_refused_by_name():
    transport = IrohTransport(ALICE, bind=("127.0.0.1:0", "127.0.0.2:0"), clock=SystemClock())
    with pytest.raises(ConfigurationError, match="one address of IPv4 and one of IPv6"):
        await transport.start()
    await transport.stop()


async def test_all_addresses_are_bound_only_with_those_to_advertise():
    everywhere = ("0.0.0.0:0", "[::]:0")
    with pytest.raises(ConfigurationError, match="advertise"):
        await IrohTransport(ALICE, bind=everywhere, clock=SystemClock()).start()


async def test_names_are_neither_bound_nor_dialled(pair):
    alice, _ = pair
    with pytest.raises(ConfigurationError, match="IP addresses only"):
        await IrohTransport(ALICE, bind=("localhost:0",), clock=SystemClock()).start()
    with pytest.raises(PeerUnreachableError, match="no address"):
        await alice.dial(Contact(BOB.peer_id, ("iroh:localhost:4433",)))
    with pytest.raises(PeerUnreachableError, match="cannot be reached"):
        await alice.dial(Contact(BOB.peer_id, ("iroh-relay:no url",)))


async def test_a_relay_is_named_only_where_one_is_configured(pair):
    alice, _ = pair
    assert not any("relay" in address for address in alice.contact.addresses)
    related = IrohTransport(
        ALICE, bind=("127.0.0.1:0",), relay_url="https://127.0.0.1:1/", clock=SystemClock()
    )
    await related.start()
    assert related.contact.addresses[-1] == "iroh-relay:https://127.0.0.1:1/"
    await related.stop()


def test_without_the_package_the_other_transport_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "iroh", None)
    with pytest.raises(MissingPackageError, match=r"tinkex\[mesh\].*tls"):
        IrohTransport(ALICE, clock=SystemClock())


async def test_frames_keep_their_order_after_a_sender_was_cancelled_as_it_had_room(pair):
    alice, bob = pair
    link = await alice.dial(bob.contact)
    far = await bob.accept()
    sending = []
    while not link._outbound._writers:
        sending.append(asyncio.create_task(link.send(bytes(1 << 16))))
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
    receiving = asyncio.create_task(receive_all(far, len(sending)))
    await turns_until(lambda: not link._outbound._writers)
    sending[-1].cancel()
    await asyncio.gather(*sending[:-1], receiving)
    assert sending[-1].cancelled()
    await turns_until(lambda: link._outbound.idle)
    for frame in (b"1", b"2", b"3"):
        assert link.send_now(frame)
    assert await receive_all(far, 3) == [b"1", b"2", b"3"]


async def test_it_stops_reading_while_nobody_takes_what_came_and_goes_on_then(pair):
    alice, bob = pair
    link = await alice.dial(bob.contact)
    far = await bob.accept()
    frames = [bytes([number]) * (1 << 16) for number in range(100)]
    sending = asyncio.gather(*(link.send(frame) for frame in frames))
    await turns_until(lambda: far._paused)
    assert far._inbound.full
    assert far._inbound.waiting_bytes < 1 << 20
    assert await receive_all(far, 50) == frames[:50]
    assert [frame async for frame in taken_as_it_comes(far, 50)] == frames[50:]
    await sending


async def taken_as_it_comes(link, count):
    """Take frames as a channel does: told of them, and without waiting."""
    came = asyncio.Event()
    link.listen(came.set)
    for _ in range(count):
        while (frame := link.receive_now()) is None:
            came.clear()
            await came.wait()
        yield frame


async def test_a_reader_may_close_the_link_as_it_is_told_of_the_first_of_two_frames(pair):
    alice, bob = pair
    link = await alice.dial(bob.contact)
    far = await bob.accept()
    told = []

    def close():
        told.append(far.receive_now())
        far.abort("enough")

    far.listen(close)
    assert link._written_at_once(enframe(b"one") + enframe(b"two"))
    await turns_until(lambda: link.closed)
    assert told[0] == b"one"
    with pytest.raises(LinkClosedError):
        await link.receive()


@pytest.mark.parametrize("closes", ["near", "far"])
async def test_links_that_ended_leave_nothing_in_the_library(pair, closes):
    alice, bob = pair
    for _ in range(3):
        link = await alice.dial(bob.contact)
        far = await bob.accept()
        await link.send(b"hello")
        assert await far.receive() == b"hello"
        await (link if closes == "near" else far).close()
        await asyncio.gather(link.gone(), far.gone())
        assert link._reading is far._reading is None
    await turns_until(lambda: not (alice._streams._asked or bob._streams._asked))


async def test_links_work_with_bindings_of_another_kind(monkeypatch):
    monkeypatch.setattr(iroh, "streams_of", lambda bindings: streams_of(sys))
    alice, bob = IrohTransport(ALICE, clock=SystemClock()), IrohTransport(BOB, clock=SystemClock())
    await alice.start()
    await bob.start()
    link = await alice.dial(bob.contact)
    far = await bob.accept()
    frames = [bytes([number]) * 50_000 for number in range(20)]
    sending = asyncio.gather(*(link.send(frame) for frame in frames))
    assert await receive_all(far, 20) == frames
    await sending
    assert far.send_now(b"back")
    assert await link.receive() == b"back"
    await far.close()
    with pytest.raises(LinkClosedError):
        await link.receive()
    await asyncio.gather(link.gone(), far.gone())
    await alice.stop()
    await bob.stop()


async def turns_until(condition):
    """Look in every turn of the event loop."""
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0)  # noqa: TID251 - no time passes


async def receive_all(link, count):
    return [await link.receive() for _ in range(count)]


async def test_a_write_that_stopping_cuts_off_leaves_nothing_in_the_library():
    alice, bob = IrohTransport(ALICE, clock=SystemClock()), IrohTransport(BOB, clock=SystemClock())
    await alice.start()
    await bob.start()
    link = await alice.dial(bob.contact)
    await bob.accept()
    while link._writing is None:
        assert link.send_now(bytes(1 << 19))
    call = link._writing.get_coro().cr_frame.f_locals["call"]
    link._writing.cancel()  # before its first step
    await alice.stop()
    await bob.stop()
    assert call._ended


def test_the_installed_bindings_copy_at_once():
    """If this fails after an update of iroh: links work, slowly; see `iroh_streams`."""
    assert is_direct(iroh_ffi)


async def test_other_bindings_are_given_small_pieces():
    class Stream:
        def __init__(self) -> None:
            self.pieces: list[bytes] = []

        async def write_all(self, data: bytes) -> None:
            self.pieces.append(data)

    stream = Stream()
    data = bytes(range(256)) * 40
    await streams_of(sys).write(stream, data)
    assert b"".join(stream.pieces) == data
    assert max(map(len, stream.pieces)) <= 4096


def test_an_error_is_told_by_its_cause():
    assert describe(ValueError("Some::Path (file.rs:1)\nCaused by:\n    timed out")) == "timed out"
    assert describe(ValueError()) == "ValueError"
