from __future__ import annotations

import msgspec
import pytest

from tinkex.errors import InputError, TrustError
from tinkex.mesh.trust.certificates import Signed
from tinkex.mesh.trust.network import (
    MAX_ENCODED_BYTES,
    NETWORK,
    change_members,
    check_network,
    found_network,
    rotate_root,
    shut_out_peer,
)


def resigned(encoded, signer, **changes):
    signed = msgspec.msgpack.decode(encoded, type=Signed)
    body = msgspec.msgpack.decode(signed.body)
    for position, value in changes.items():
        body[int(position[1:])] = value
    body = msgspec.msgpack.encode(body)
    return msgspec.msgpack.encode(Signed(body, signer.peer_id.raw, signer.sign(NETWORK, body)))


def test_a_new_networks_id_is_its_first_root(mesh):
    assert mesh.info.id == mesh.root.peer_id
    assert mesh.info.trusted == {mesh.root.peer_id}
    assert mesh.info.members == (mesh.auth.peer_id.raw,)
    assert (mesh.info.name, mesh.info.sequence) == ("home", 1)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", " a"])
def test_a_name_that_is_none_is_refused(mesh, name):
    with pytest.raises(InputError, match="name"):
        found_network(mesh.root, name, members=[])


def test_members_change_under_a_higher_number(mesh):
    second = mesh.key(3)
    changed = change_members(mesh.root, mesh.encoded, [second.peer_id, mesh.auth.peer_id])
    info = check_network(changed, network=mesh.root.peer_id, known=mesh.info)
    assert set(info.members) == {second.peer_id.raw, mesh.auth.peer_id.raw}
    with pytest.raises(TrustError, match="older"):
        check_network(mesh.encoded, network=mesh.root.peer_id, known=info)


def test_a_peer_that_is_shut_out_stays_so_and_is_no_member(mesh):
    once = shut_out_peer(mesh.root, mesh.encoded, mesh.auth.peer_id)
    twice = shut_out_peer(mesh.root, once, mesh.key(3).peer_id)
    for encoded, number in ((once, 1), (twice, 2)):
        info = check_network(encoded, network=mesh.root.peer_id, known=mesh.info)
        assert info.members == ()
        assert len(info.shut_out) == number
        assert mesh.auth.peer_id.raw in info.shut_out
    rotated = rotate_root(mesh.root, mesh.key(4), twice, now=mesh.now, keep_old=False)
    assert len(check_network(rotated, network=mesh.root.peer_id).shut_out) == 2


def test_a_rotated_root_signs_for_the_same_network_and_the_old_one_no_more(mesh):
    new = mesh.key(4)
    rotated = rotate_root(mesh.root, new, mesh.encoded, now=mesh.now, keep_old=True)
    info = check_network(rotated, network=mesh.root.peer_id, known=mesh.info)
    assert info.id == mesh.root.peer_id
    assert info.trusted == {mesh.root.peer_id, new.peer_id}
    with pytest.raises(TrustError, match="newest root"):
        change_members(mesh.root, rotated, [])
    newest = mesh.key(5)
    again = rotate_root(new, newest, rotated, now=mesh.now, keep_old=False)
    dropped = check_network(again, network=mesh.root.peer_id, known=info)
    assert dropped.trusted == {newest.peer_id}


def test_a_rotation_after_a_theft_keeps_no_old_root(mesh):
    rotated = rotate_root(mesh.root, mesh.key(4), mesh.encoded, now=mesh.now, keep_old=False)
    info = check_network(rotated, network=mesh.root.peer_id)
    assert info.trusted == {mesh.key(4).peer_id}
    twice = rotate_root(mesh.key(4), mesh.key(5), rotated, now=mesh.now, keep_old=True)
    assert check_network(twice, network=mesh.root.peer_id, known=info).trusted == {
        mesh.key(4).peer_id,
        mesh.key(5).peer_id,
    }


def test_who_stole_the_old_root_cannot_sign_another_future_for_who_saw_the_rotation(mesh):
    rotated = rotate_root(mesh.root, mesh.key(4), mesh.encoded, now=mesh.now, keep_old=True)
    known = check_network(rotated, network=mesh.root.peer_id)
    thief = rotate_root(mesh.root, mesh.key(6), mesh.encoded, now=mesh.now, keep_old=False)
    for _ in range(3):
        thief = change_members(mesh.key(6), thief, [mesh.key(6).peer_id])
    with pytest.raises(TrustError, match="stolen"):
        check_network(thief, network=mesh.root.peer_id, known=known)
    shorter = resigned(mesh.encoded, mesh.root, _5=9)
    with pytest.raises(TrustError, match="stolen"):
        check_network(shorter, network=mesh.root.peer_id, known=known)


def test_a_description_of_another_network_is_refused(mesh):
    with pytest.raises(TrustError, match="another network"):
        check_network(mesh.encoded, network=mesh.key(9).peer_id)


def test_a_description_signed_by_somebody_else_is_refused(mesh):
    with pytest.raises(TrustError, match="newest root"):
        check_network(resigned(mesh.encoded, mesh.key(9)), network=mesh.root.peer_id)


def test_a_changed_description_is_refused(mesh):
    signed = msgspec.msgpack.decode(mesh.encoded, type=Signed)
    changed = msgspec.structs.replace(signed, body=signed.body.replace(b"home", b"hole"))
    with pytest.raises(TrustError, match="signature"):
        check_network(msgspec.msgpack.encode(changed), network=mesh.root.peer_id)


def test_a_root_that_no_rotation_leads_to_is_refused(mesh):
    stranger = mesh.key(9).peer_id.raw
    for roots in [[mesh.root.peer_id.raw, stranger], []]:
        with pytest.raises(TrustError, match="no rotation leads"):
            check_network(resigned(mesh.encoded, mesh.root, _2=roots), network=mesh.root.peer_id)


def test_two_descriptions_with_one_number_are_refused(mesh):
    other = resigned(mesh.encoded, mesh.root, _0="else")
    with pytest.raises(TrustError, match="two descriptions"):
        check_network(other, network=mesh.root.peer_id, known=mesh.info)
    assert check_network(mesh.encoded, network=mesh.root.peer_id, known=mesh.info) == mesh.info


def rotation_of(encoded):
    return msgspec.msgpack.decode(msgspec.msgpack.decode(encoded, type=Signed).body)[3][0]


def test_a_rotation_that_the_old_root_did_not_sign_is_refused(mesh):
    thief = mesh.key(9)
    own = found_network(thief, "mine", members=[])
    foreign = rotation_of(rotate_root(thief, mesh.key(8), own, now=0, keep_old=False))
    forged = resigned(mesh.encoded, mesh.key(8), _2=[mesh.key(8).peer_id.raw], _3=[foreign])
    with pytest.raises(TrustError, match="not signed by the root before"):
        check_network(forged, network=mesh.root.peer_id)
    unreadable = resigned(mesh.encoded, mesh.root, _3=[[b"x", b"y", b"z"]])
    with pytest.raises(TrustError, match="cannot be read"):
        check_network(unreadable, network=mesh.root.peer_id)


def test_a_rotation_back_to_an_older_root_is_refused(mesh):
    there = rotate_root(mesh.root, mesh.key(4), mesh.encoded, now=0, keep_old=True)
    back = rotate_root(mesh.key(4), mesh.root, there, now=0, keep_old=False)
    with pytest.raises(TrustError, match="leads back"):
        check_network(back, network=mesh.root.peer_id)


@pytest.mark.parametrize("encoded", [b"", b"\xc0", b"x" * 100, b"\x93\xc4\x00\xc4\x00\xc4\x00"])
def test_bytes_that_are_no_description_are_refused(mesh, encoded):
    with pytest.raises(TrustError, match="no description"):
        check_network(encoded, network=mesh.root.peer_id)


def test_an_endless_description_is_refused_unread(mesh):
    with pytest.raises(TrustError, match="too long"):
        check_network(b"x" * (MAX_ENCODED_BYTES + 1), network=mesh.root.peer_id)
