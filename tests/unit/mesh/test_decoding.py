"""Whatever bytes a peer sends, reading them gives what was meant or the typed error, nothing else.

Each reader gets its own bytes with a few of them changed; the seed is in the loop, `CASES` of them
in CI, a hundred times as many in the long form.
"""

from __future__ import annotations

import random
import zlib

import msgspec
import pytest
from mesh_feeds import key, member
from mesh_trust import TestNetwork, receipt_body

from tinkex.errors import AuthenticationError, InputError, MeshError, TrustError
from tinkex.mesh.accounts.tokens import TokenReader
from tinkex.mesh.blobs.manifest import CHUNK_BYTES, LARGEST_FILES, FileEntry, Manifest, content_id
from tinkex.mesh.blobs.manifest import read_manifest as read_blob_manifest
from tinkex.mesh.dht.records import Offer, RecordChecker, make_record
from tinkex.mesh.feeds.chain import ForkProof
from tinkex.mesh.feeds.entry import check_entry, decode_entry, sign_entry
from tinkex.mesh.feeds.epoch import expiry_of, open_epoch, read_opening
from tinkex.mesh.feeds.snapshot import CoveredHead, decode_snapshot, sign_snapshot
from tinkex.mesh.feeds.terms import Ballot, encode_record, read_ballot
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import (
    CERTIFICATE,
    GRANT,
    CertificateBody,
    Chain,
    Grant,
    Signed,
    check_certificate,
    opened,
)
from tinkex.mesh.trust.invitations import PREFIX, invite, read_invitation
from tinkex.mesh.trust.network import check_network, found_network, rotate_root
from tinkex.mesh.trust.permits import BlobPermitCheck, PermitCheck, make_blob_permit, make_permit
from tinkex.mesh.trust.receipts import RECEIPT, verify_receipt
from tinkex.testing import VirtualClock

NOW = 1_700_000_000.0
CASES = 60
TRUST = TestNetwork(NOW)
GATEWAY = TRUST.peer(Role.GATEWAY)
NETWORK = found_network(TRUST.root, "home", members=[TRUST.auth.peer_id])
ROTATED = rotate_root(TRUST.root, KeyPair(b"r" * 32), NETWORK, now=NOW, keep_old=True)
AUTHOR = member(1)


def certificate(data):
    check_certificate(data, network=TRUST.network, roots=TRUST.roots, now=NOW)


def resigned(kind, purpose):
    """Read what its signer really signed: whoever holds a key signs nonsense as well."""

    def read(data):
        signer = KeyPair(b"s" * 32)
        opened(Signed(data, signer.peer_id.raw, signer.sign(purpose, data)), purpose, kind)

    return read


def description(data):
    check_network(data, network=TRUST.network)


def invitation(data):
    read_invitation(data.decode("latin-1"), now=NOW)


class Unspent:
    def use(self, *_, **__):
        pass


def permit(data):
    check = PermitCheck(GATEWAY.peer_id, Unspent(), clock=VirtualClock())
    check.check(data, caller=GATEWAY.peer_id, request=b"", model="m", tokens=1)


def proven_permit(data):
    PermitCheck(GATEWAY.peer_id, Unspent(), clock=VirtualClock()).prove(data)


def blob_permit(data):
    check = BlobPermitCheck(
        TRUST.network, lambda: TRUST.roots, is_revoked=TRUST.is_revoked, clock=VirtualClock()
    )
    check.check(data, certificate=GATEWAY.encoded, caller=GATEWAY.peer_id, content="c")


def receipt(data):
    signature = GATEWAY.key_pair.sign(RECEIPT, data)
    verify_receipt(data, signature, gateway=GATEWAY.peer_id)


def record(data):
    checker = RecordChecker(
        network=TRUST.network, roots=lambda: TRUST.roots, is_revoked=TRUST.is_revoked
    )
    checker.check(zlib.compress(data), now=NOW)


def entry(data):
    check_entry(decode_entry(data))


def signed_entry(payload, sequence=0):
    return sign_entry(
        key(1),
        feed="network",
        epoch=bytes(16),
        sequence=sequence,
        previous=bytes(32),
        time=1,
        payload=payload,
    )


def opening(data):
    read_opening(signed_entry(data))
    expiry_of(signed_entry(data))


def ballot(data):
    read_ballot(signed_entry(data, 1).encoded(), term=1, candidate=key(1).peer_id)


def proof(data):
    ForkProof.decode(data).check()


def snapshot(data):
    decode_snapshot(data).read()


def manifest(data):
    read_blob_manifest(data, content_id(data))


def token(data):
    TokenReader(TRUST.network).read(data.decode("latin-1"), NOW)


def of_sprout():
    files = (FileEntry(name, CHUNK_BYTES + 1, (bytes(32),) * 2) for name in sorted(LARGEST_FILES))
    return msgspec.msgpack.encode(Manifest(tuple(files)))


def a_receipt():
    return msgspec.msgpack.encode(receipt_body(GATEWAY, TRUST.auth, at=NOW))


def a_record():
    return zlib.decompress(
        make_record(
            GATEWAY.key_pair,
            topic="gateway",
            offer=Offer(models=("m",)),
            addresses=("tls:127.0.0.1:1",),
            certificate=GATEWAY.encoded,
            sequence=1,
            expires_at=NOW + 45,
            ttl_s=45.0,
        )
    )


def a_proof():
    return ForkProof.of(signed_entry(b"1", 1), signed_entry(b"2", 1)).encoded()


def a_snapshot():
    return sign_snapshot(
        AUTHOR.key_pair,
        feed="network",
        certificate=AUTHOR.certificate,
        signed_at=NOW,
        covered=(CoveredHead(bytes(16), 3, b"h" * 32, 1, NOW),),
        states={"view@1": b"state"},
    ).encoded()


def an_opening():
    return open_epoch(AUTHOR, feed="network", epoch=bytes(16), time=1, builds_on=[]).payload


def a_permit():
    return make_permit(
        GATEWAY.key_pair,
        processor=GATEWAY.peer_id,
        account="a",
        model="m",
        request=b"",
        max_tokens=1,
        expires_at=CLOCK.now() + 9,
    )


CHAIN = msgspec.msgpack.decode(GATEWAY.encoded, type=Chain)
CLOCK = VirtualClock()
READERS = {
    "certificate": (certificate, GATEWAY.encoded, TrustError),
    "grant": (resigned(Grant, GRANT), CHAIN.grant.body, TrustError),
    "certificate's body": (
        resigned(CertificateBody, CERTIFICATE),
        CHAIN.certificate.body,
        TrustError,
    ),
    "network": (description, NETWORK, TrustError),
    "rotated network": (description, ROTATED, TrustError),
    "invitation": (
        invitation,
        invite(TRUST.root, NETWORK, Role.CLIENT, contacts=(), now=NOW).text.encode(),
        (InputError, TrustError),
    ),
    "permit": (permit, a_permit(), TrustError),
    "permit's signature": (proven_permit, a_permit(), TrustError),
    "blob permit": (
        blob_permit,
        make_blob_permit(
            GATEWAY.key_pair,
            fetcher=GATEWAY.peer_id,
            account="a",
            content="c",
            expires_at=CLOCK.now() + 9,
        ),
        TrustError,
    ),
    "receipt": (receipt, a_receipt(), TrustError),
    "record": (record, a_record(), TrustError),
    "entry": (entry, signed_entry(b"x").encoded(), MeshError),
    "opening": (opening, an_opening(), MeshError),
    "ballot": (ballot, encode_record(Ballot(1, key(1).peer_id.raw)), MeshError),
    "proof of a fork": (proof, a_proof(), MeshError),
    "snapshot": (snapshot, a_snapshot(), MeshError),
    "manifest": (manifest, of_sprout(), MeshError),
    "token": (token, b"eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJ4In0.AAAA", AuthenticationError),
}


def deep(data):
    """Nested further than any reader goes."""
    return b"\x93" * 3000 + data


def mutated(rng, data):
    """Bytes flipped, cut, put in, or text made no text: somewhere, once or a few times."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.randint(1, 9)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 9))
            case 3:
                changed[at : at + 1] = b"\xff"
            case _:
                del changed[at:]
    return bytes(changed)


def texts_of(data):
    """Where a msgpack's short texts begin: their first letter is made no UTF-8."""
    return [n + 1 for n, byte in enumerate(data[:-1]) if 0xA1 <= byte <= 0xBF]


def only_typed(read, data, errors):
    try:
        read(data)
    except errors:
        return
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} for {data!r:.200}") from error


@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_what_is_meant_for_it(name):
    read, data, errors = READERS[name]
    if name == "token":
        with pytest.raises(errors):
            read(data)
    else:
        read(data)


@pytest.mark.parametrize("name", READERS)
def test_text_that_is_none_and_endless_nesting_give_the_typed_error(name):
    read, data, errors = READERS[name]
    for nonsense in (b"", b"\xc1", PREFIX.encode(), deep(data), data[:-1], data + b"\x00"):
        only_typed(read, nonsense, errors)
    for at in texts_of(data):
        only_typed(read, data[:at] + b"\xff" + data[at + 1 :], errors)


@pytest.mark.parametrize("name", READERS)
def test_mutated_bytes_give_the_typed_error_or_are_read(name):
    read, data, errors = READERS[name]
    for seed in range(CASES):
        only_typed(read, mutated(random.Random(seed), data), errors)


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_many_mutated_bytes_give_the_typed_error_or_are_read(name):
    read, data, errors = READERS[name]
    for seed in range(CASES, 100 * CASES):
        only_typed(read, mutated(random.Random(seed), data), errors)
