"""The form of an entry."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_feeds import key

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.feeds.entry import (
    FIRST,
    Header,
    Raw,
    check_entry,
    decode_entry,
    read_header,
    sign_entry,
)

EPOCH = bytes(range(16))


def make(**changes):
    fields = {
        "feed": "usage",
        "epoch": EPOCH,
        "sequence": 0,
        "previous": FIRST,
        "time": 5,
        "payload": b"x",
    }
    return sign_entry(key(1), **fields | changes)


def test_entry_comes_back_from_its_bytes():
    entry = make(payload=b"hello")
    again = check_entry(decode_entry(entry.encoded()))
    assert again == entry
    assert again.payload == b"hello"
    assert again.author == key(1).peer_id
    assert str(again.id) == f"entry 0 of usage of {key(1).peer_id.short}, epoch 00010203"
    assert again.id.chain == again.chain
    assert again.time_s == 5e-6


@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_no_bit_of_an_entry_can_be_changed(position, bit):
    encoded = bytearray(make().encoded())
    encoded[position % len(encoded)] ^= 1 << bit
    with pytest.raises((PeerProtocolError, TrustError)):
        check_entry(decode_entry(bytes(encoded)))


def test_payload_of_another_entry_is_refused():
    entry = make(payload=b"pay 1")
    with pytest.raises(TrustError, match="payload"):
        check_entry(Raw(entry.raw.header, entry.raw.signature, b"pay 9"))


def test_signature_for_another_purpose_is_refused():
    entry = make()
    other = key(1).sign("permit", entry.raw.header)
    with pytest.raises(TrustError, match="signature"):
        check_entry(Raw(entry.raw.header, other, b"x"))


def test_header_has_one_form_alone():
    header = make().header
    loose = msgspec.msgpack.encode(msgspec.structs.astuple(header)).replace(
        b"\xa5usage", b"\xd9\x05usage"
    )
    assert msgspec.msgpack.decode(loose, type=Header) == header
    with pytest.raises(PeerProtocolError, match="form"):
        read_header(loose)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": b"short"},
        {"previous": b""},
        {"feed": ""},
        {"feed": "x" * 65},
        {"sequence": -1},
        {"time": 1 << 62},
    ],
)
def test_header_out_of_bounds_is_refused(changes):
    with pytest.raises(PeerProtocolError, match="form"):
        read_header(make(**changes).raw.header)


def test_long_header_is_refused_before_it_is_decoded():
    with pytest.raises(PeerProtocolError, match="600 bytes"):
        read_header(bytes(600))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_a_typed_error(noise):
    with pytest.raises((PeerProtocolError, TrustError)):
        check_entry(decode_entry(noise))
    with pytest.raises(PeerProtocolError):
        read_header(noise)
