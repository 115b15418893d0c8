import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkex.errors import InputError, PeerProtocolError
from tinkex.mesh.transport.base import MAX_FRAME_BYTES
from tinkex.mesh.transport.frames import HEADER_BYTES, Deframer, enframe

frames_of_any_kind = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(frames_of_any_kind, st.lists(st.integers(min_value=0), max_size=20))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(frames, cuts):
    deframer = Deframer()
    stream = b"".join(enframe(frame) for frame in frames)
    assert [f for piece in pieces(stream, cuts) for f in deframer.feed(piece)] == frames
    assert deframer.waiting_bytes == 0


@given(frames_of_any_kind, st.binary(min_size=1, max_size=300), st.integers(min_value=0))
def test_an_unfinished_frame_waits_for_its_end(frames, last, missing):
    deframer = Deframer()
    encoded = enframe(last)
    at = missing % len(encoded)
    stream = b"".join(enframe(frame) for frame in frames)
    assert deframer.feed(stream + encoded[:at]) == frames
    assert deframer.feed(encoded[at:]) == [last]


@given(st.binary(max_size=2000), st.lists(st.integers(min_value=0), max_size=20))
def test_any_bytes_are_frames_or_refused_and_nothing_else(data, cuts):
    deframer = Deframer()
    try:
        for piece in pieces(data, cuts):
            for frame in deframer.feed(piece):
                assert 0 < len(frame) <= MAX_FRAME_BYTES
    except PeerProtocolError:
        with pytest.raises(PeerProtocolError):
            deframer.feed(enframe(b"x"))


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_is_refused_before_anything_is_kept(length):
    deframer = Deframer()
    header = length.to_bytes(HEADER_BYTES, "big")
    assert deframer.feed(header[:3]) == []
    with pytest.raises(PeerProtocolError, match=str(length)):
        deframer.feed(header[3:] + b"x" * 100)
    assert deframer.waiting_bytes <= HEADER_BYTES + 100


def test_the_longest_frame_passes():
    deframer = Deframer()
    frame = bytes(MAX_FRAME_BYTES)
    stream = enframe(frame)
    found = [f for i in range(0, len(stream), 65536) for f in deframer.feed(stream[i : i + 65536])]
    assert found == [frame]


@pytest.mark.parametrize("frame", [b"", bytes(MAX_FRAME_BYTES + 1)])
def test_what_no_peer_would_take_is_not_sent(frame):
    with pytest.raises(InputError, match="1 to"):
        enframe(frame)
