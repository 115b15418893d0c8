from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest

from tinkex.errors import InputError, TrustError
from tinkex.mesh.roles import Role
from tinkex.mesh.trust import invitations
from tinkex.mesh.trust.certificates import check_certificate
from tinkex.mesh.trust.invitations import InvitedTo, check_join, invite, read_invitation
from tinkex.mesh.trust.network import found_network


def make(mesh, role=Role.GATEWAY, **details):
    contacts = [InvitedTo(mesh.auth.peer_id.raw, ("iroh:127.0.0.1:4433", "iroh:[::1]:4433"))]
    return invite(mesh.root, mesh.encoded, role, contacts=contacts, now=mesh.now, **details)


def coded(fields):
    encoded = msgspec.msgpack.encode(fields)
    checked = hashlib.sha256(encoded).digest()[:5] + encoded
    return invitations.PREFIX + base64.b32encode(checked).decode().rstrip("=").lower()


def decoded(text):
    raw = text.removeprefix(invitations.PREFIX).upper()
    return msgspec.msgpack.decode(base64.b32decode(raw + "=" * (-len(raw) % 8))[5:])


def test_an_invitation_survives_its_text_and_line_breaks_in_it(mesh):
    made = make(mesh)
    text = made.text
    assert text.startswith("tinkex-mesh:")
    read = read_invitation("\n".join([text[:70], text[70:], ""]), now=mesh.now + 1)
    assert (read.role, read.network, read.contacts) == (Role.GATEWAY, mesh.info, made.contacts)
    assert read.text == text
    assert read.network_encoded == mesh.encoded
    assert read.certificate is None


def test_who_holds_an_invitation_proves_it_for_its_own_id_alone(mesh):
    invitation = read_invitation(make(mesh).text, now=mesh.now)
    peer, other = mesh.key(7).peer_id, mesh.key(8).peer_id
    grant = check_join(invitation.grant, invitation.prove(peer), peer, network=mesh.info)
    assert grant.role is Role.GATEWAY
    with pytest.raises(TrustError, match="does not hold"):
        check_join(invitation.grant, invitation.prove(peer), other, network=mesh.info)


def test_a_grant_of_another_network_is_refused_at_the_door(mesh):
    stranger = mesh.key(9)
    encoded = found_network(stranger, "other", members=[])
    foreign = invite(stranger, encoded, Role.GATEWAY, contacts=(), now=mesh.now)
    peer = mesh.key(7).peer_id
    with pytest.raises(TrustError, match="another network"):
        check_join(foreign.grant, foreign.prove(peer), peer, network=mesh.info)


def test_an_expired_invitation_is_refused(mesh):
    text = make(mesh, join_s=60).text
    with pytest.raises(TrustError, match="expired"):
        read_invitation(text, now=mesh.now + 60)


def test_the_secret_is_in_no_repr(mesh):
    invitation = make(mesh)
    assert repr(invitation) == str(invitation) == "Invitation(gateway, 'home')"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-3],
        lambda text: text[:40] + text[41:],
        lambda text: text[:50] + ("a" if text[50] != "a" else "b") + text[51:],
        lambda text: text + "8",
        lambda _: "tinkex-mesh:",
    ],
)
def test_a_text_that_was_not_copied_whole_says_so(mesh, change):
    with pytest.raises(InputError, match="not copied whole"):
        read_invitation(change(make(mesh).text), now=mesh.now)


@pytest.mark.parametrize("text", ["", "tml-123", "tinkex-mesh:" + "a" * 20_000])
def test_a_text_that_is_no_invitation_is_refused(mesh, text):
    with pytest.raises(InputError, match="no invitation"):
        read_invitation(text, now=mesh.now)


def test_an_invitation_of_another_version_says_so(mesh):
    with pytest.raises(InputError, match="another version"):
        read_invitation(coded([1, 2, 3]), now=mesh.now)


def test_another_secret_role_or_network_inside_is_refused(mesh):
    fields = decoded(make(mesh).text)
    foreign = found_network(mesh.key(9), "other", members=[])
    processor = decoded(make(mesh, Role.PROCESSOR).text)
    for position, value, words in [
        (1, b"s" * 32, "secret"),
        (1, b"short", "cannot be read"),
        (2, foreign, "another network"),
        (0, processor[0], "secret"),
        (0, [b"x", *processor[0][1:]], "cannot be read"),
        (0, [fields[0][0].replace(b"gateway", b"clientx"), *fields[0][1:]], "cannot be read"),
        (0, [fields[0][0], fields[0][1], b"s" * 64], "signature"),
    ]:
        changed = [*fields]
        changed[position] = value
        with pytest.raises(TrustError, match=words):
            read_invitation(coded(changed), now=mesh.now)


def test_an_auth_workers_invitation_carries_its_certificate(mesh):
    peer = mesh.key(3).peer_id
    invitation = read_invitation(make(mesh, Role.AUTH, peer=peer).text, now=mesh.now)
    certificate = check_certificate(
        invitation.certificate,
        network=mesh.info.id,
        roots=mesh.info.trusted,
        now=mesh.now,
    )
    assert (certificate.peer, certificate.role) == (peer, Role.AUTH)
    with pytest.raises(TrustError, match="certified by the root"):
        check_join(invitation.grant, invitation.prove(peer), peer, network=mesh.info)


def test_an_invitation_with_another_ones_certificate_is_refused(mesh):
    first = decoded(make(mesh, Role.AUTH, peer=mesh.key(3).peer_id).text)
    second = decoded(make(mesh, Role.AUTH, peer=mesh.key(4).peer_id).text)
    with pytest.raises(TrustError, match="of another one"):
        read_invitation(coded([*first[:4], second[4]]), now=mesh.now)


def test_what_cannot_be_invited_is_refused(mesh):
    with pytest.raises(InputError, match="names its peer id"):
        make(mesh, Role.AUTH)
    with pytest.raises(InputError, match="names its peer id"):
        make(mesh, Role.CLIENT, peer=mesh.key(3).peer_id)
    with pytest.raises(InputError, match="positive"):
        make(mesh, join_s=0)
    with pytest.raises(TrustError, match="not the root key"):
        invite(mesh.auth, mesh.encoded, Role.CLIENT, contacts=(), now=mesh.now)
