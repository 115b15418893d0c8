"""Records: what is believed, and every reason not to."""

import zlib

import msgspec
import pytest
from mesh_trust import TestNetwork

from tinkex.errors import InputError, TrustError
from tinkex.mesh.dht import records
from tinkex.mesh.dht.records import Offer, RecordChecker, make_record, may_announce, merged
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role

NOW = 1_700_000_000.0
HASH = "ab" * 32


@pytest.fixture(scope="module")
def network():
    return TestNetwork(NOW)


@pytest.fixture(scope="module")
def processor(network):
    return network.peer(Role.PROCESSOR)


@pytest.fixture
def checker(network):
    return checker_of(network)


def checker_of(network, kind=RecordChecker):
    return kind(network=network.network, roots=lambda: network.roots, is_revoked=network.is_revoked)


def record_of(peer, topic="processor", offer=None, **changes):
    values = {
        "addresses": ("tls:127.0.0.1:4433", "tls:[::1]:4433"),
        "certificate": peer.encoded,
        "sequence": 1,
        "expires_at": NOW + 45,
        "ttl_s": 45.0,
    } | changes
    return make_record(peer.key_pair, topic=topic, offer=offer or Offer(), **values)


def test_record_says_what_was_offered(checker, processor):
    offer = Offer(models=("tinkex/sprout",), adapters=(HASH,), load=1.5, free_slots=3)
    found = checker.check(record_of(processor, offer=offer), now=NOW, topic="processor")
    assert found.contact.peer_id == processor.peer_id
    assert found.contact.addresses == ("tls:127.0.0.1:4433", "tls:[::1]:4433")
    assert (found.models, found.load, found.free_slots) == (("tinkex/sprout",), 1.5, 3)
    assert found.adapters == (HASH[:16],)
    assert found.certificate == processor.certificate


def test_record_with_a_model_and_ten_adapters_fits_in_a_kilobyte(checker, processor):
    many = tuple(KeyPair.generate().peer_id.raw.hex() for _ in range(10))
    offer = Offer(models=("Qwen/Qwen3-30B-A3B-Instruct-2507",), adapters=many)
    encoded = record_of(processor, "adapter:" + HASH, offer)
    assert len(encoded) <= 1024
    assert len(checker.check(encoded, now=NOW).adapters) == 10


def test_adapters_without_room_are_left_out_last_first(checker, processor):
    many = tuple(KeyPair.generate().peer_id.raw.hex() for _ in range(500))
    found = checker.check(record_of(processor, offer=Offer(adapters=many)), now=NOW)
    assert 20 < len(found.adapters) < 500
    assert all(
        content.startswith(prefix) for content, prefix in zip(many, found.adapters, strict=False)
    )


def test_offer_that_finds_no_room_is_refused_where_it_is_made(processor):
    names = tuple(KeyPair.generate().peer_id.raw.hex() for _ in range(40))
    with pytest.raises(InputError, match="fewer or shorter models"):
        record_of(processor, offer=Offer(models=names))


def test_record_signed_by_another_key_is_refused(checker, network, processor):
    signed, _body = records._read(record_of(processor))
    forged = KeyPair.generate().sign(records.RECORD, signed.body)
    encoded = zlib.compress(msgspec.msgpack.encode([signed.body, forged]))
    with pytest.raises(TrustError, match="not signed by the peer"):
        checker.check(encoded, now=NOW)


def test_any_changed_byte_is_refused(checker, processor):
    plain = zlib.decompress(record_of(processor))
    for place in range(0, len(plain), 7):
        changed = bytearray(plain)
        changed[place] ^= 1
        with pytest.raises(TrustError):
            checker.check(zlib.compress(bytes(changed)), now=NOW)


def test_record_with_somebody_elses_certificate_is_refused(checker, network, processor):
    other = network.peer(Role.PROCESSOR)
    with pytest.raises(TrustError, match="somebody else"):
        checker.check(record_of(processor, certificate=other.encoded), now=NOW)


def test_record_of_another_network_is_refused(checker):
    stranger = TestNetwork(NOW).peer(Role.PROCESSOR)
    with pytest.raises(TrustError, match="another network"):
        checker.check(record_of(stranger), now=NOW)


@pytest.mark.parametrize("role", [Role.PROCESSOR, Role.CLIENT, Role.BOOTSTRAP, Role.AUTH])
def test_only_a_gateway_announces_gateway(checker, network, role):
    with pytest.raises(TrustError, match="may not announce"):
        checker.check(record_of(network.peer(role), "gateway"), now=NOW)


@pytest.mark.parametrize(
    ("topic", "roles"),
    [
        ("auth", {Role.AUTH}),
        ("gateway", {Role.GATEWAY}),
        ("processor", {Role.PROCESSOR}),
        ("bootstrap", {Role.BOOTSTRAP, Role.AUTH}),
        ("model:tinkex/sprout", {Role.PROCESSOR}),
        ("adapter:" + HASH, {Role.PROCESSOR, Role.CLIENT, Role.GATEWAY}),
        ("model:", set()),
        ("adapter", set()),
        ("client", set()),
        ("gateway:x", set()),
        ("", set()),
    ],
)
def test_each_topic_is_for_its_roles(topic, roles):
    assert {role for role in Role if may_announce(role, topic)} == roles


def test_expired_record_is_refused_with_a_minute_for_skewed_clocks(checker, processor):
    encoded = record_of(processor, expires_at=NOW + 45)
    assert checker.check(encoded, now=NOW + 45 + 59)
    with pytest.raises(TrustError, match="has expired"):
        checker.check(encoded, now=NOW + 45 + 61)


def test_record_of_a_clock_a_minute_off_is_believed(checker, processor):
    for skew in (-60, 60):
        encoded = record_of(processor, expires_at=NOW + 45 + skew)
        assert checker.check(encoded, now=NOW)


@pytest.mark.parametrize(
    ("expires_in", "ttl"),
    [(3600, 3600), (3600, 45), (45 + 61, 45), (45, 61), (45, 0), (45, float("nan"))],
)
def test_record_that_lives_too_long_is_refused(checker, processor, expires_in, ttl):
    encoded = record_of(processor, expires_at=NOW + expires_in, ttl_s=ttl)
    with pytest.raises(TrustError, match="lives longer"):
        checker.check(encoded, now=NOW)


@pytest.mark.parametrize("when", [float("nan"), float("-inf"), float("inf")])
def test_expiry_that_is_no_date_is_refused(checker, processor, when):
    with pytest.raises(TrustError):
        checker.check(record_of(processor, expires_at=when), now=NOW)


@pytest.mark.parametrize("offer", [Offer(load=float("nan")), Offer(load=-1), Offer(free_slots=-1)])
def test_numbers_that_make_no_sense_are_refused(checker, processor, offer):
    with pytest.raises(TrustError, match="no sense"):
        checker.check(record_of(processor, offer=offer), now=NOW)


def test_oversized_record_is_refused_unread(checker):
    with pytest.raises(TrustError, match="refused unread"):
        checker.check(b"\x00" * 1025, now=NOW)


def test_record_that_inflates_without_end_is_refused(checker):
    bomb = zlib.compress(b"\x00" * 500_000, 9)
    assert len(bomb) < 1024
    with pytest.raises(TrustError, match="cut off, or has over"):
        checker.check(bomb, now=NOW)


@pytest.mark.parametrize("data", [b"", b"x", zlib.compress(b""), zlib.compress(b"\xc1")])
def test_garbage_is_refused(checker, data):
    with pytest.raises(TrustError):
        checker.check(data, now=NOW)


def test_record_of_a_peer_that_was_shut_out_is_refused(network, checker):
    bad = network.peer(Role.PROCESSOR)
    encoded = record_of(bad)
    checker.check(encoded, now=NOW)
    network.revoked.add(bad.peer_id)
    with pytest.raises(TrustError, match="shut out"):
        checker.check(encoded, now=NOW)


def test_record_of_whom_a_shut_out_auth_worker_certified_is_refused():
    network = TestNetwork(NOW)
    checker = checker_of(network)
    encoded = record_of(network.peer(Role.PROCESSOR))
    checker.check(encoded, now=NOW)
    network.revoked.add(network.auth.peer_id)
    with pytest.raises(TrustError, match="certified by"):
        checker.check(encoded, now=NOW)


def test_record_of_another_topic_than_asked_for_is_refused(checker, processor):
    with pytest.raises(TrustError, match="another topic"):
        checker.check(record_of(processor, "model:a"), now=NOW, topic="model:b")


def test_merging_keeps_each_publishers_latest_and_no_withdrawn_one(checker, network, processor):
    other = network.peer(Role.PROCESSOR)
    old, new = record_of(processor, sequence=1), record_of(processor, sequence=2)
    gone = record_of(other, sequence=8, withdrawn=True)
    held = [checker.check(encoded, now=NOW) for encoded in (new, old, record_of(other), gone)]
    (left,) = merged(held)
    assert (left.contact.peer_id, left.sequence) == (processor.peer_id, 2)
