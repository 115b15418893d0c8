from __future__ import annotations

import pytest

from tinkex.errors import TrustError
from tinkex.mesh.accounts.events import (
    NetworkChanged,
    PeerRevoked,
    decode_network_events,
    encode_events,
)
from tinkex.mesh.accounts.network import NetworkKnowledge
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.network import change_members, found_network, rotate_root
from tinkex.mesh.trust.revocations import Revocations

NOW = 1_700_000_000.0
ROOT, AUTH = KeyPair(b"r" * 32), KeyPair(b"a" * 32)
FIRST = found_network(ROOT, "home", members=[AUTH.peer_id])


def test_revoked_peers_reach_every_member(book):
    peer = KeyPair(b"p" * 32).peer_id
    event = PeerRevoked(at=NOW, peer=peer.raw)
    assert not book.network.knows(event)
    book.carry(event)
    assert book.network.knows(event)
    assert book.network.revocations.is_revoked(peer)
    assert book.network.revocations.revoked_at(peer) == NOW
    assert set(book.state.revoked_peers) == {peer.raw}
    assert peer.raw not in b"".join(book.public_log)


def test_a_new_description_counts_and_an_older_or_foreign_one_does_not(book):
    second = change_members(ROOT, FIRST, [])
    rotated = rotate_root(ROOT, KeyPair(b"2" * 32), second, now=NOW, keep_old=True)
    assert not book.network.knows(NetworkChanged(at=NOW, network=FIRST))
    for encoded in (second, rotated, FIRST, second):
        book.carry(NetworkChanged(at=NOW, network=encoded))
        assert book.network.knows(NetworkChanged(at=NOW, network=encoded))
    assert (book.network.info.sequence, book.network.encoded) == (3, rotated)
    thief = rotate_root(ROOT, KeyPair(b"3" * 32), second, now=NOW, keep_old=False)
    with pytest.raises(TrustError, match="stolen"):
        book.network.apply(NetworkChanged(at=NOW, network=thief))
    foreign = found_network(AUTH, "foreign", members=[])
    with pytest.raises(TrustError, match="another network"):
        book.network.apply(NetworkChanged(at=NOW, network=foreign))
    assert book.network.info.sequence == 3


def test_a_dump_comes_to_the_same_view(book):
    book.carry(PeerRevoked(at=NOW, peer=b"p" * 32))
    book.carry(NetworkChanged(at=NOW, network=change_members(ROOT, FIRST, [])))
    again = NetworkKnowledge(book.network.info, FIRST, Revocations())
    for event in decode_network_events(encode_events(book.network.events())):
        again.apply(event)
    assert list(again.events()) == list(book.network.events())
    assert again.info.sequence == 2
