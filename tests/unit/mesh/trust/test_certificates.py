"""Role certificates: what holds, and every way in which one does not."""

import msgspec
import pytest

from tinkex.errors import TrustError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import (
    CLOCK_SKEW_S,
    Chain,
    Signed,
    check_certificate,
    make_certificate,
    make_grant,
)

NOW = 1_700_000_000.0
DAY = 86_400.0


def pair(number):
    return KeyPair(bytes([number]) * 32)


ROOT, AUTH, PEER, INVITED, OTHER = (pair(number) for number in range(1, 6))
ROOTS = frozenset({ROOT.peer_id})


def grant(role, *, root=ROOT, network=ROOT.peer_id, key=INVITED.peer_id, certificate_s=30 * DAY):
    return make_grant(
        root,
        network=network,
        key=key,
        role=role,
        join_before=NOW + DAY,
        certificate_s=certificate_s,
    )


def certificate(signer, of_grant, *, peer=PEER.peer_id, issuer=None, start=NOW, end=NOW + DAY):
    return make_certificate(
        signer, grant=of_grant, peer=peer, not_before=start, expires_at=end, issuer=issuer
    )


def chain(encoded):
    return msgspec.msgpack.decode(encoded, type=Chain)


def auth_chain(**kwargs):
    return chain(certificate(ROOT, grant(Role.AUTH), peer=AUTH.peer_id, **kwargs))


def check(encoded, *, network=ROOT.peer_id, roots=ROOTS, now=NOW + 1):
    return check_certificate(encoded, network=network, roots=roots, now=now)


def test_root_certifies_an_auth_worker():
    found = check(certificate(ROOT, grant(Role.AUTH), peer=AUTH.peer_id))
    assert (found.peer, found.role, found.issuer) == (AUTH.peer_id, Role.AUTH, ROOT.peer_id)


@pytest.mark.parametrize("role", set(Role) - {Role.AUTH})
def test_auth_worker_certifies_everybody_else_under_a_grant(role):
    encoded = certificate(AUTH, grant(role), issuer=auth_chain())
    found = check(encoded)
    assert (found.peer, found.role) == (PEER.peer_id, role)
    assert found.encoded == encoded
    assert found.expires_at == NOW + DAY


@pytest.mark.parametrize("role", set(Role) - {Role.AUTH})
def test_root_certifies_auth_workers_alone(role):
    with pytest.raises(TrustError, match="auth workers only"):
        check(certificate(ROOT, grant(role)))


def test_auth_worker_certifies_no_other_auth_worker():
    with pytest.raises(TrustError, match="may not sign"):
        check(certificate(AUTH, grant(Role.AUTH), issuer=auth_chain()))


def test_auth_worker_cannot_make_a_grant_of_its_own():
    with pytest.raises(TrustError, match="not signed by its root"):
        check(certificate(AUTH, grant(Role.GATEWAY, root=AUTH), issuer=auth_chain()))


def test_peer_cannot_certify_itself_or_others():
    gateway = chain(certificate(AUTH, grant(Role.GATEWAY), issuer=auth_chain()))
    for issuer in (None, auth_chain(), gateway):
        with pytest.raises(TrustError, match=r"nobody whom|may not sign"):
            check(certificate(PEER, grant(Role.GATEWAY), issuer=issuer))


def test_certificate_of_another_network_is_refused():
    theirs = certificate(
        OTHER, grant(Role.AUTH, root=OTHER, network=OTHER.peer_id), peer=PEER.peer_id
    )
    with pytest.raises(TrustError, match="another network"):
        check(theirs)
    ours = certificate(ROOT, grant(Role.AUTH), peer=AUTH.peer_id)
    with pytest.raises(TrustError, match="another network"):
        check(ours, network=OTHER.peer_id)


@pytest.mark.parametrize("role", [Role.AUTH, Role.GATEWAY])
def test_certificate_holds_in_its_time_alone(role):
    if role is Role.AUTH:
        encoded = certificate(ROOT, grant(role))
    else:
        encoded = certificate(AUTH, grant(role), issuer=auth_chain(end=NOW + 9 * DAY))
    for now in (NOW - CLOCK_SKEW_S, NOW + DAY + CLOCK_SKEW_S - 1):
        assert check(encoded, now=now).role is role
    for now in (NOW - CLOCK_SKEW_S - 1, NOW + DAY + CLOCK_SKEW_S):
        with pytest.raises(TrustError, match="expired, or is not valid yet"):
            check(encoded, now=now)


def test_certificate_ends_with_its_issuers():
    issuer = auth_chain(end=NOW + 10)
    encoded = certificate(AUTH, grant(Role.GATEWAY), issuer=issuer)
    assert check(encoded, now=NOW + 9).role is Role.GATEWAY
    with pytest.raises(TrustError, match="expired"):
        check(encoded, now=NOW + 10 + CLOCK_SKEW_S)


def test_certificate_lasts_no_longer_than_the_grant_allows():
    of_grant = grant(Role.GATEWAY, certificate_s=10)
    with pytest.raises(TrustError, match="longer than its invitation"):
        check(certificate(AUTH, of_grant, issuer=auth_chain(), end=NOW + 11))


def test_certificate_for_another_grant_is_refused():
    gateway = chain(certificate(AUTH, grant(Role.GATEWAY, key=PEER.peer_id), issuer=auth_chain()))
    client = chain(certificate(AUTH, grant(Role.CLIENT), issuer=auth_chain()))
    mixed = Chain(gateway.grant, client.certificate, client.issuer)
    with pytest.raises(TrustError, match="another invitation"):
        check(msgspec.msgpack.encode(mixed))


@pytest.mark.parametrize("part", ["grant", "certificate", "issuer"])
def test_no_byte_of_a_chain_can_be_changed(part):
    whole = chain(certificate(AUTH, grant(Role.GATEWAY), issuer=auth_chain()))
    holder = whole.issuer if part == "issuer" else whole
    signed = holder.certificate if part == "issuer" else getattr(whole, part)
    for place in range(0, len(signed.body), 7):
        body = bytearray(signed.body)
        body[place] ^= 1
        forged = Signed(bytes(body), signed.signer, signed.signature)
        if part == "issuer":
            changed = Chain(whole.grant, whole.certificate, Chain(holder.grant, forged))
        else:
            parts = {"grant": whole.grant, "certificate": whole.certificate, part: forged}
            changed = Chain(**parts, issuer=whole.issuer)
        with pytest.raises(TrustError):
            check(msgspec.msgpack.encode(changed))


def test_signer_of_a_wrong_length_is_refused():
    whole = chain(certificate(ROOT, grant(Role.AUTH)))
    forged = Signed(whole.certificate.body, b"short", whole.certificate.signature)
    with pytest.raises(TrustError):
        check(msgspec.msgpack.encode(Chain(whole.grant, forged)))


def test_chain_longer_than_needed_is_refused():
    whole = chain(certificate(ROOT, grant(Role.AUTH)))
    with pytest.raises(TrustError, match="auth workers only"):
        check(msgspec.msgpack.encode(Chain(whole.grant, whole.certificate, whole)))


@pytest.mark.parametrize("encoded", [b"", b"\xc0", b"\x93", b"garbage", bytes(1000)])
def test_garbage_is_no_certificate(encoded):
    with pytest.raises(TrustError, match="no role certificate"):
        check(encoded)


def test_chain_without_end_is_refused():
    whole = certificate(ROOT, grant(Role.AUTH))
    depth = 50_000
    prefix = b"\x93" + whole[1:-1]
    with pytest.raises(TrustError, match="no role certificate"):
        check(prefix * depth + b"\xc0")
