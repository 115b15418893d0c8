"""Key pairs, ids and signatures; how a secret key lies on disk."""

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.identity import KeyPair, PeerId

ALICE = KeyPair(bytes(range(32)))
BOB = KeyPair(bytes(32))


def test_signature_holds_for_its_signer_purpose_and_message_alone():
    signature = ALICE.sign("grant", b"hello")
    assert len(signature) == 64
    assert ALICE.peer_id.signed("grant", b"hello", signature)
    assert not BOB.peer_id.signed("grant", b"hello", signature)
    assert not ALICE.peer_id.signed("permit", b"hello", signature)
    assert not ALICE.peer_id.signed("grant", b"hellO", signature)
    assert not ALICE.peer_id.signed("grant", b"hello", signature[:-1])
    assert not ALICE.peer_id.signed("grant", b"hello", bytes(64))


def test_signatures_are_those_of_another_implementation():
    other = Ed25519PrivateKey.from_private_bytes(ALICE.seed)
    assert other.public_key().public_bytes_raw() == ALICE.peer_id.raw
    for message in (b"", b"hello", bytes(100_000)):
        signed = b"tinkex-mesh-1\x00grant\x00" + message
        assert ALICE.sign("grant", message) == other.sign(signed)
        assert ALICE.peer_id.signed("grant", message, other.sign(signed))


def test_signature_cut_elsewhere_does_not_hold():
    signature = ALICE.sign("grant", b"hello")
    for cut in (0, 1, 63):
        assert not ALICE.peer_id.signed("grant", signature[cut:] + b"hello", signature[:cut])
    assert not ALICE.peer_id.signed("grant", b"hello", signature + b"\x00")


def test_key_that_would_have_signed_everything_signed_nothing():
    # A point of small order: by the bare equation of RFC 8032 (5.1.7) this holds for any message.
    identity = bytes([1]) + bytes(31)
    assert not PeerId(identity).signed("grant", b"hello", identity + bytes(32))


def test_seed_of_another_length_is_refused():
    with pytest.raises(InputError, match="32 bytes"):
        KeyPair(bytes(31))


def test_purpose_and_message_cannot_be_shifted_into_one_another():
    signature = ALICE.sign("a", b"b\x00c")
    assert not ALICE.peer_id.signed("a\x00b", b"c", signature)


def test_purpose_with_a_zero_byte_is_refused():
    with pytest.raises(InputError, match="purpose"):
        ALICE.sign("a\x00b", b"c")


def test_id_is_read_as_it_is_shown():
    assert PeerId.parse(str(ALICE.peer_id)) == ALICE.peer_id
    assert str(ALICE.peer_id).startswith(ALICE.peer_id.short)
    for text in ("", "00", "zz" * 32, "00" * 33):
        with pytest.raises(InputError):
            PeerId.parse(text)


def test_id_that_is_no_point_of_the_curve_signed_nothing():
    assert not PeerId(b"\xff" * 32).signed("grant", b"x", bytes(64))


def test_secret_key_is_shown_nowhere():
    assert ALICE.seed.hex() not in repr(ALICE)
    assert str(ALICE.seed) not in repr(ALICE)


def test_key_is_kept_for_its_owner_alone(tmp_path):
    path = tmp_path / "identity.key"
    made = KeyPair.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyPair.load_or_create(path).peer_id == made.peer_id


def test_keys_made_at_once_are_one_key(tmp_path):
    path = tmp_path / "identity.key"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: KeyPair.load_or_create(path).peer_id, range(16)))
    assert len(set(made)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["identity.key"]


def test_key_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "identity.key"
    KeyPair.load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        KeyPair.load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_file_that_holds_no_key_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="no secret key"):
        KeyPair.load_or_create(path)
    assert path.read_bytes() == content
