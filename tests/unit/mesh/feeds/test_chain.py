"""What may follow what, and proofs of forks."""

import pytest
from mesh_feeds import START, key

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.feeds.chain import ChainRules, ForkProof, Head, SignedHead
from tinkex.mesh.feeds.entry import FIRST, Raw, read_entry, sign_entry

NOW = int(START * 1e6)


def chain(length, *, who=1, feed="usage", epoch=bytes(16), say=b"entry %d"):
    entries, previous = [], FIRST
    for sequence in range(length):
        entry = sign_entry(
            key(who),
            feed=feed,
            epoch=epoch,
            sequence=sequence,
            previous=previous,
            time=NOW + sequence,
            payload=say % sequence,
        )
        previous = entry.hash
        entries.append(entry)
    return entries


def check(entries, head=None, now=START):
    ChainRules().check_run(entries, head, now=now)


def test_run_continues_what_is_held():
    entries = chain(6)
    check(entries)
    check(entries[4:], Head.of(entries[3]))


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2], [0, 1, 1], [1, 2]], ids=["swapped", "gap", "twice", "no opening"]
)
def test_entries_out_of_order_are_refused(order):
    entries = chain(3)
    with pytest.raises(PeerProtocolError):
        check([entries[i] for i in order])


def test_entry_of_another_author_epoch_or_feed_is_no_continuation():
    head = Head.of(chain(2)[1])
    for other in ({"who": 2}, {"epoch": b"2" * 16}, {"feed": "permits"}):
        with pytest.raises(PeerProtocolError, match="out of order"):
            check(chain(3, **other)[2:], head)


def test_signature_by_another_than_the_chains_author_is_refused():
    entries = chain(2)
    forged = Raw(
        entries[1].raw.header, key(2).sign("feed-entry", entries[1].raw.header), b"entry 1"
    )
    with pytest.raises(TrustError, match="signature"):
        ChainRules().check_run([entries[0], read_entry(forged)], None, now=START)


def test_run_with_another_past_is_refused():
    with pytest.raises(PeerProtocolError, match="does not chain"):
        check(chain(4, say=b"other %d")[2:], Head.of(chain(2)[1]))


def test_times_grow_and_lie_in_no_future():
    first = chain(1)[0]
    same_time = sign_entry(
        key(1),
        feed="usage",
        epoch=bytes(16),
        sequence=1,
        previous=first.hash,
        time=NOW,
        payload=b"",
    )
    with pytest.raises(PeerProtocolError, match="no later"):
        check([first, same_time])
    with pytest.raises(TrustError, match="future"):
        check([first], now=START - 61)
    check([first], now=START - 59)


def test_two_entries_with_one_number_prove_a_fork():
    one, two = chain(3)[2], chain(3, say=b"other %d")[2]
    proof = ForkProof.of(one, two)
    assert proof == ForkProof.of(two, one)
    assert ForkProof.decode(proof.encoded()).check() == one.id
    assert len(proof.encoded()) < 600


def test_nobody_is_shut_out_by_what_proves_nothing():
    one, two = chain(2), chain(2, say=b"other %d")
    with pytest.raises(TrustError, match="no two entries"):
        ForkProof.of(one[0], one[0]).check()
    with pytest.raises(TrustError, match="no two entries"):
        ForkProof.of(one[0], one[1]).check()
    with pytest.raises(TrustError, match="no two entries"):
        ForkProof.of(one[0], chain(1, epoch=b"2" * 16)[0]).check()
    header = two[1].raw.header
    forged = ForkProof(
        one[1].raw.header, one[1].raw.signature, header, key(2).sign("feed-entry", header)
    )
    with pytest.raises(TrustError, match="signature"):
        forged.check()
    with pytest.raises(PeerProtocolError):
        ForkProof.decode(b"nonsense")
    with pytest.raises(PeerProtocolError, match="longer"):
        ForkProof.decode(bytes(2000))


def test_head_proves_itself():
    entry = chain(3)[2]
    signed = SignedHead(entry.raw.header, entry.raw.signature)
    assert signed.check() == Head.of(entry)
    with pytest.raises(TrustError):
        SignedHead(entry.raw.header, bytes(64)).check()
