"""The shell around `TlsChannel`, over a socket that only looks like one of asyncio's."""

import asyncio

import pytest
from mesh_tls import ALICE, BOB, CHALLENGE, peer

from tinkex.errors import LinkClosedError
from tinkex.mesh.transport.frames import enframe
from tinkex.mesh.transport.tls_channel import TlsChannel
from tinkex.mesh.transport.tls_link import TlsLink


class Wire:
    """One end of a connection, as an event loop other than asyncio's makes them: of no class of
    asyncio's. What is written goes to the other end when `carry` is called."""

    def __init__(self):
        self.written = []
        self.ended = self.aborted = False
        self.reading = True

    def write(self, data):
        assert not self.ended
        self.written.append(bytes(data))

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.ended

    def close(self):
        self.ended = True

    def abort(self):
        self.ended = self.aborted = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class Pair:
    """Two links, greeted."""

    def __init__(self):
        self.lost = []
        self.near = self._link(TlsChannel(ALICE, expected=peer(BOB)))
        self.far = self._link(TlsChannel(BOB, challenge=CHALLENGE))
        self.near_wire, self.far_wire = Wire(), Wire()
        self.far.connection_made(self.far_wire)
        self.near.connection_made(self.near_wire)
        self.carry()

    def _link(self, channel):
        return TlsLink(
            channel, on_made=lambda _: None, on_linger=pytest.fail, on_lost=self.lost.append
        )

    def carry(self, *, at_a_time=1 << 20):
        """Carry what was written until nothing is; many writes come as one piece."""
        ways = ((self.near_wire, self.far), (self.far_wire, self.near))
        while any(wire.written for wire, _ in ways):
            for wire, link in ways:
                data = b"".join(wire.written)
                wire.written.clear()
                for start in range(0, len(data), at_a_time):
                    link.data_received(data[start : start + at_a_time])


@pytest.fixture
async def pair():
    return Pair()


async def test_link_needs_no_class_of_its_socket(pair):
    await asyncio.gather(pair.near.greeted, pair.far.greeted)
    assert (pair.near.remote, pair.far.remote) == (peer(BOB), peer(ALICE))
    assert pair.near.send_now(b"at once")
    await pair.near.send(b"waited for")
    pair.carry(at_a_time=7)
    assert [await pair.far.receive() for _ in range(2)] == [b"at once", b"waited for"]
    await pair.near.close()
    assert pair.near_wire.ended
    pair.carry()
    assert pair.far.closed
    assert pair.far_wire.ended
    with pytest.raises(LinkClosedError):
        pair.far.receive_now()


async def test_what_is_sent_at_once_is_written_before_anything_else_runs(pair):
    assert pair.near.send_now(b"frame")
    assert len(pair.near_wire.written) == 1
    pair.carry()
    assert pair.far.receive_now() == b"frame"


async def test_nothing_is_written_to_a_socket_that_is_full_and_the_order_is_kept(pair):
    pair.near.pause_writing()
    long = bytes(1 << 17)
    taken = 0
    while pair.near.send_now(long):
        taken += 1
    assert taken == 2  # as much as may wait
    assert pair.near_wire.written == []
    waiting = asyncio.create_task(pair.near.send(b"last"))
    await asyncio.sleep(0)  # noqa: TID251 - lets it wait
    pair.near.resume_writing()
    await waiting
    await asyncio.sleep(0)  # noqa: TID251 - the turn's end, when it is written
    assert pair.near.send_now(b"after it")
    pair.carry()
    assert [await pair.far.receive() for _ in range(4)] == [long, long, b"last", b"after it"]


async def test_reader_that_takes_nothing_stops_its_socket_and_polling_starts_it_again(pair):
    count = 0
    while pair.far_wire.reading:
        assert pair.near.send_now(bytes(1 << 16))
        pair.carry()
        count += 1
    assert count == 4
    assert pair.far.receive_now() is not None
    assert pair.far_wire.reading


async def test_frames_of_one_piece_after_a_close_are_given_to_nobody(pair):
    taken = []

    def take_and_abort():
        if not taken:
            taken.append(pair.far.receive_now())
            pair.far.abort("that is enough")

    pair.far.listen(take_and_abort)
    pair.near._channel.write(b"".join(enframe(b"%d" % i) for i in range(10)))
    pair.near._flush()
    pair.carry()
    assert taken == [b"0"]
    assert pair.far_wire.aborted
    with pytest.raises(LinkClosedError, match="enough"):
        pair.far.receive_now()
