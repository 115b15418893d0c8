import contextlib
import ssl
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_attacks.tls import let_in
from mesh_tls import ALICE, BOB, RawDialler, dial, exchange, hello_of, listen, peer

from tinkex.errors import MeshError, PeerProtocolError, TrustError
from tinkex.mesh.transport import tls_channel, tls_keys
from tinkex.mesh.transport.base import MAX_FRAME_BYTES
from tinkex.mesh.transport.frames import enframe
from tinkex.mesh.transport.tls_channel import HELLO_BYTES
from tinkex.mesh.transport.tls_keys import TlsKeys, peer_of_certificate


def test_both_sides_prove_who_they_are_and_exchange_frames():
    alice, bob = dial(ALICE, BOB), listen(BOB)
    exchange(alice, bob)
    assert (alice.open, bob.open) == (True, True)
    assert (alice.remote, bob.remote) == (peer(BOB), peer(ALICE))
    alice.write(enframe(b"there") + enframe(b"too"))
    bob.write(enframe(b"back"))
    assert exchange(alice, bob) == ([b"back"], [b"there", b"too"])


def test_a_greeting_in_single_bytes_is_a_greeting():
    alice, bob = dial(ALICE, BOB), listen(BOB)
    while not (alice.open and bob.open):
        for source, sink in ((alice, bob), (bob, alice)):
            for byte in source.outbound.read():
                sink.feed(bytes([byte]))
    assert bob.remote == peer(ALICE)


def test_nothing_is_a_frame_before_the_hello_is_whole():
    bob = listen(BOB)
    mallory = RawDialler(bob)
    mallory.go_on()
    mallory.say(enframe(b"x" * (HELLO_BYTES - 5)))
    assert mallory.received == []
    assert not bob.open
    with pytest.raises(TrustError):
        mallory.say(b"y")


def test_tls_before_1_3_is_refused():
    old = RawDialler(listen(BOB))
    old.tls.context.maximum_version = ssl.TLSVersion.TLSv1_2
    old.tls = old.tls.context.wrap_bio(old.incoming, old.outgoing)
    with pytest.raises(PeerProtocolError, match="TLS"):
        old.go_on()


def test_a_listener_that_greets_wrongly_is_refused(monkeypatch):
    monkeypatch.setattr(tls_channel, "WELCOME", b"\x02")
    bob = listen(BOB)
    alice = dial(ALICE, BOB)
    while not bob.open:
        alice.feed(bob.outbound.read())
        bob.feed(alice.outbound.read())
    monkeypatch.undo()
    with pytest.raises(PeerProtocolError, match="greet"):
        exchange(alice, bob)


@given(st.binary(min_size=1, max_size=500))
def test_bytes_that_are_no_tls_open_nothing(data):
    bob = listen(BOB)
    with contextlib.suppress(MeshError):
        assert bob.feed(data) == []
    assert not bob.open


def test_bytes_changed_on_the_way_are_noticed():
    alice, bob = dial(ALICE, BOB), listen(BOB)
    exchange(alice, bob)
    alice.write(enframe(b"hello"))
    data = bytearray(alice.outbound.read())
    data[-1] ^= 1
    with pytest.raises(PeerProtocolError):
        bob.feed(bytes(data))


RECORD = 1 << 14
"""Bytes that a record of TLS takes."""


@given(
    st.lists(st.integers(-6, 6).map(lambda near: RECORD - 4 + near) | st.integers(1, 3 * RECORD))
    .filter(bool)
    .map(lambda sizes: sizes[:8]),
    st.lists(st.floats(0, 1), max_size=8),
)
def test_each_frame_is_there_with_its_last_byte_wherever_the_stream_is_cut(sizes, cuts):
    alice, bob = dial(ALICE, BOB), listen(BOB)
    exchange(alice, bob)
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    wire, ends = b"", []
    for frame in frames:
        alice.write(enframe(frame))
        wire += alice.outbound.read()
        ends.append(len(wire))
    got, start = [], 0
    for end in [*sorted(int(cut * len(wire)) for cut in cuts), len(wire)]:
        got += bob.feed(wire[start:end])
        assert got == frames[: sum(whole <= end for whole in ends)]
        start = end


def test_a_frame_too_long_is_refused():
    alice, bob = dial(ALICE, BOB), listen(BOB)
    exchange(alice, bob)
    alice.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(PeerProtocolError, match="announced"):
        exchange(alice, bob)


def test_a_farewell_is_understood():
    alice, bob = dial(ALICE, BOB), listen(BOB)
    exchange(alice, bob)
    alice.write(enframe(b"last"))
    alice.end()
    assert bob.feed(alice.outbound.read()) == [b"last"]
    assert bob.ended
    assert not bob.open


def test_the_certificate_holds_the_peers_key():
    assert peer_of_certificate(ALICE.certificate) == peer(ALICE)


def test_what_is_no_certificate_with_an_ed25519_key_is_refused():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ec.generate_private_key(ec.SECP256R1())
    ours = x509.load_der_x509_certificate(ALICE.certificate)
    other = (
        x509.CertificateBuilder()
        .subject_name(ours.subject)
        .issuer_name(ours.subject)
        .serial_number(1)
        .not_valid_before(ours.not_valid_before_utc)
        .not_valid_after(ours.not_valid_after_utc)
        .public_key(key.public_key())
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(TrustError, match="Ed25519"):
        peer_of_certificate(other.public_bytes(Encoding.DER))
    for nothing in (None, b"", b"junk"):
        with pytest.raises(TrustError, match="cannot be read"):
            peer_of_certificate(nothing)


@pytest.mark.parametrize("files_in_memory", [True, False])
def test_the_key_reaches_ssl_and_stays_on_no_disk(files_in_memory, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not files_in_memory:
        monkeypatch.setattr(tls_keys, "_OPEN_FILES", tmp_path / "none")
    alice, bob = dial(TlsKeys(ALICE.key_pair), BOB), listen(TlsKeys(BOB.key_pair))
    exchange(alice, bob)
    assert alice.open
    assert list(tmp_path.iterdir()) == []


def test_an_honest_dialler_is_let_in():
    bob = listen(BOB)
    alice = RawDialler(bob)
    alice.go_on()
    assert let_in(bob, alice, hello_of(ALICE, ALICE, bob))
