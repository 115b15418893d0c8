"""Several auth workers, of which one writes: elections, commits, cut-off leaders."""

import sqlite3
from random import Random

import pytest
from mesh_feeds import key, member, store
from mesh_leadership import Party
from mesh_rpc import caught, settled

from tinkex.errors import (
    ConfigurationError,
    NoQuorumError,
    PeerProtocolError,
    PermissionDeniedError,
    TrustError,
)
from tinkex.mesh.api.leadership import AskVote, Hold, LeadershipApi
from tinkex.mesh.feeds.election import Election, LeadershipConfig
from tinkex.mesh.feeds.entry import FIRST, sign_entry
from tinkex.mesh.feeds.leadership import LED
from tinkex.mesh.feeds.policy import LEADERSHIP
from tinkex.mesh.feeds.terms import Ballot, Term, Terms, encode_record, read_ballot
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role

A, B, C = (key(number).peer_id for number in (1, 2, 3))


async def test_one_leads_and_what_it_commits_is_at_a_majority(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        leader, leadership = await party.elected()
        assert leadership.leader == leader.peer_id
        await leadership.confirm()
        await party.while_time_passes(leadership.commit(b"ada"))
        await party.pass_time(3)
        for node in party.nodes:
            assert await party.history(node) == ["ada"]
            other = party.leaderships[node.peer_id]
            assert other.leader == leader.peer_id
            if node is not leader:
                with pytest.raises(NoQuorumError, match=leader.peer_id.short):
                    await other.confirm()
                with pytest.raises(NoQuorumError):
                    await other.commit(b"not I")
        assert party.leaders() == [leader]


async def test_next_leader_has_all_that_was_committed(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        first, leadership = await party.elected()
        for text in (b"a", b"b"):
            await party.while_time_passes(leadership.commit(text))
        old = first.peer_id
        await party.stop(first)
        second, leadership = await party.elected()
        assert second.peer_id != old
        assert await party.history(second) == ["a", "b"]
        await party.while_time_passes(leadership.commit(b"c"))
        again = await party.revive(old)
        await party.pass_time(4)
        assert await party.history(again) == ["a", "b", "c"]
        assert len(party.leaders()) == 1


async def test_candidate_that_is_behind_gets_what_it_lacks_and_then_the_vote(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        leader, leadership = await party.elected()
        behind, other = (node for node in party.nodes if node is not leader)
        await party.stop(behind)
        await party.while_time_passes(leadership.commit(b"a"))
        await party.stop(leader)
        party.leaderships[other.peer_id].election.wait = lambda _: None  # it never wants to lead
        party.leaderships[other.peer_id].election._due_at = float("inf")
        credentials, folder = party.lives[behind.peer_id]
        again = await party.node(credentials=credentials, folder=folder)
        other.replicator.unfollow(again.peer_id)
        again.follow = other.follow = lambda _: None  # nothing comes of itself
        await party.join(again)
        assert await again.holds(LED) == []
        elected, leadership = await party.elected()
        assert elected is again
        assert await party.history(again) == ["a"]
        await party.while_time_passes(leadership.commit(b"b"))


async def test_leader_that_hears_of_a_later_term_leads_no_more(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        leader, leadership = await party.elected()
        for node in party.nodes:
            if node is not leader:  # they voted for somebody whom the leader knows nothing of
                party.leaderships[node.peer_id].election.restore(9, PeerId(bytes(32)))
        await party.pass_time(1)
        assert not leadership.is_leader
        assert leadership.election.term >= 9
        assert isinstance(await caught(leadership.commit(b"late")), NoQuorumError)
        _, leadership = await party.elected()
        assert leadership.election.term > 9


async def test_without_a_majority_reads_go_on_and_writes_fail_closed(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        leader, leadership = await party.elected()
        await party.while_time_passes(leadership.commit(b"a"))
        for node in list(party.nodes):
            if node is not leader:
                await party.stop(node)
        failed = await party.while_time_passes(caught(leadership.commit(b"b")))
        assert isinstance(failed, NoQuorumError)
        assert failed.category == "unknown"
        await party.pass_time(5)
        assert not leadership.is_leader
        error = await caught(leadership.commit(b"c"))
        assert isinstance(error, NoQuorumError)
        assert "nothing was written" in str(error)
        assert error.category == "server"
        assert "c" not in await leader.holds(LED)
        assert (await party.history(leader))[0] == "a"


async def test_what_a_cut_off_leader_wrote_alone_does_not_count(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        old, _ = await party.elected()
        await party.while_time_passes(party.leaderships[old.peer_id].commit(b"a"))
        await party.stop(old)
        credentials, folder = party.lives[old.peer_id]
        _, leadership = await party.elected()
        await party.while_time_passes(leadership.commit(b"b"))
        # the old one, alone, believes that it leads and writes
        from tinkex.mesh.feeds.store import FeedStore

        alone = FeedStore(folder / "feeds.db", credentials, clock=party.clock, inline=True)
        async with alone:
            await alone.own(LED).append(b"stale")
        again = await party.revive(old.peer_id)
        await party.pass_time(5)
        assert set(await again.holds(LED)) == {"a", "b", "stale"}
        for node in party.nodes:
            assert await party.history(node) == ["a", "b"]
        (now,) = party.leaders()
        await party.while_time_passes(party.leaderships[now.peer_id].commit(b"c"))
        await party.pass_time(3)
        for node in party.nodes:
            assert await party.history(node) == ["a", "b", "c"]


async def test_uncommitted_entry_never_outlives_contradiction_at_any_node(tmp_path):
    """Whoever leads next decides whether it counts; all then agree."""
    async with Party(tmp_path) as party:
        await party.begin()
        old, leadership = await party.elected()
        await party.while_time_passes(leadership.commit(b"a"))
        others = [node for node in list(party.nodes) if node is not old]
        for node in others:
            await party.stop(node)
        await party.while_time_passes(caught(leadership.commit(b"unknown")))
        for node in others:
            await party.revive(node.peer_id)
        await party.elected()
        await party.pass_time(5)
        histories = [await party.history(node) for node in party.nodes]
        assert histories[0] == histories[1] == histories[2]
        assert histories[0][0] == "a"


async def test_members_whose_disks_were_full_at_an_election_elect_once_there_is_room(tmp_path):
    def disk_full(_):
        raise sqlite3.OperationalError("database or disk is full")

    async with Party(tmp_path) as party:
        await party.begin()
        leader, _ = await party.elected()
        await party.stop(leader)
        for node in party.nodes:
            node.store.database.commit = disk_full
        await party.pass_time(10)
        assert party.leaders() == []
        for node in party.nodes:
            del node.store.database.commit
        _, leadership = await party.elected()
        await party.while_time_passes(leadership.commit(b"a"))


async def test_the_only_member_leads_at_once(tmp_path):
    async with Party(tmp_path, count=1) as party:
        await party.begin()
        await settled(100)
        (leader,) = party.leaders()
        await party.leaderships[leader.peer_id].commit(b"a")
        assert await party.history(leader) == ["a"]


async def test_stranger_to_the_members_list_gets_no_answer(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        stranger = await party.node()
        gateway = await party.node(Role.GATEWAY)
        target = party.nodes[0]
        for asker in (stranger, gateway):
            for method, request in (
                (LeadershipApi.rpc_vote, AskVote(9, 0, ())),
                (LeadershipApi.rpc_hold, Hold(9, ())),
            ):
                error = await caught(asker.peers.call(target.contact, method, request, timeout_s=1))
                assert isinstance(error, PermissionDeniedError)
        assert party.leaderships[target.peer_id].election.term < 9


async def test_member_votes_for_nobody_who_lacks_what_it_holds(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        voter, candidate, _ = party.nodes
        await party.stop(party.nodes[2])
        await voter.write(LED, "might have been committed")
        request = AskVote(50, 0, ())
        vote = await candidate.peers.call(
            voter.contact, LeadershipApi.rpc_vote, request, timeout_s=1
        )
        assert vote.ballot is None
        assert vote.behind
        behind = AskVote(50, 0, ())
        assert await party.leaderships[voter.peer_id].lacks(behind)


async def test_vote_is_remembered_after_a_restart(tmp_path):
    async with Party(tmp_path) as party:
        await party.begin()
        voter, one, two = party.nodes
        vote = await one.peers.call(
            voter.contact, LeadershipApi.rpc_vote, AskVote(50, 0, ()), timeout_s=1
        )
        assert read_ballot(vote.ballot, term=50, candidate=one.peer_id) == voter.peer_id
        await party.stop(voter)
        voter = await party.revive(voter.peer_id)
        assert party.leaderships[voter.peer_id].election.term == 50
        for asker, given in ((two, False), (one, True)):
            again = await asker.peers.call(
                voter.contact, LeadershipApi.rpc_vote, AskVote(50, 0, ()), timeout_s=1
            )
            assert (again.ballot is not None) is given


# --- the rules alone ----------------------------------------------------------


def election(now=0.0):
    return Election(A, LeadershipConfig(), Random(1), now)


def test_member_votes_once_in_a_term_and_for_nobody_while_it_hears_a_leader():
    one = election()
    assert one.may_vote(B, 1, 0)
    one.vote(B, 0)
    assert one.may_vote(B, 1, 0.1)
    assert not one.may_vote(C, 1, 0.1)
    assert one.may_vote(C, 2, 0.1)
    assert one.hear(B, 2, 1.0)
    assert not one.may_vote(C, 3, 2.0)
    assert one.may_vote(C, 3, 3.0)
    assert not one.hear(B, 2, 3.1)


def test_leader_is_one_for_as_long_as_a_majority_said_so():
    one = election()
    term = one.begin(5.0)
    assert not one.leads
    assert one.win(term, 5.0)
    assert one.confirmed(5.9)
    assert not one.may_vote(B, term + 1, 5.9)
    assert not one.confirmed(6.1)
    one.extend(6.0)
    assert one.confirmed(6.9)
    one.step_down(7.0, term + 3)
    assert not one.leads
    assert one.term == term + 3
    assert not one.win(term, 7.0)


def test_times_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError):
        LeadershipConfig(lease_s=2.0)
    with pytest.raises(ConfigurationError):
        LeadershipConfig(call_timeout_s=0)


def ballot(voter, candidate, term=1):
    payload = encode_record(Ballot(term, candidate.raw))
    return entry(voter, payload).encoded()


def entry(author, payload, *, feed=LEADERSHIP, time=1):
    return sign_entry(
        key(author),
        feed=feed,
        epoch=bytes(16),
        sequence=1,
        previous=FIRST,
        time=time,
        payload=payload,
    )


def term_of(leader, *voters, number=1, previous=0, start=-1, end=-1):
    members = (A.raw, B.raw, C.raw)
    ballots = tuple(ballot(voter, key(leader).peer_id, number) for voter in voters)
    return entry(
        leader,
        encode_record(Term(number, previous, {LED: end}, {LED: start}, members, ballots)),
    )


def test_term_without_a_majority_of_ballots_is_refused():
    for voters in ((1,), (1, 1), (1, 7)):
        with pytest.raises(TrustError, match="majority"):
            Terms().fold(term_of(1, *voters))
    terms = Terms()
    with pytest.raises(TrustError, match="another term or candidate"):
        terms.fold(
            entry(
                1,
                encode_record(Term(1, 0, {}, {}, (A.raw,), (ballot(1, A, term=2),))),
            )
        )
    with pytest.raises(PeerProtocolError):
        read_ballot(entry(1, b"nonsense").encoded(), term=1, candidate=A)
    terms.fold(term_of(1, 1, 2))
    assert (terms.last, terms.last_leader) == (1, A)
    assert Terms(terms.dump()).last == 1


def test_term_that_becomes_known_after_its_successor_changes_the_mark():
    terms = Terms()
    alone = entry(1, b"x", feed=LED, time=20)
    terms.fold(term_of(3, 2, 3, number=3, previous=2, start=30, end=25))
    before = terms.mark
    assert terms.counts(alone)
    terms.fold(term_of(2, 2, 3, number=2, previous=0, start=10))
    assert not terms.counts(alone)
    assert terms.last == 3
    assert terms.mark != before


def test_entries_count_that_their_author_wrote_while_it_led():
    terms = Terms()
    led = {name: entry(name, b"x", feed=LED, time=0) for name in (1, 2, 3)}
    assert all(terms.counts(each) for each in led.values())

    def counts(author, time):
        return terms.counts(entry(author, b"x", feed=LED, time=time))

    terms.fold(term_of(1, 1, 2, number=1, start=10))
    assert counts(3, 10)
    assert not counts(3, 11)
    assert counts(1, 11)
    terms.fold(term_of(2, 2, 3, number=4, previous=1, start=25, end=20))
    assert counts(1, 20)
    assert not counts(1, 21)
    assert not counts(2, 25)
    assert counts(2, 26)
    # a term that its successor does not name was nobody's
    terms.fold(term_of(3, 1, 3, number=3, previous=1, start=22, end=15))
    assert counts(1, 20)
    assert not counts(3, 30)
    assert terms.last == 4
    assert terms.voted(A) == (0, b"")


async def test_members_own_ballots_are_in_its_feed(tmp_path):
    async with store(tmp_path, member(1)) as held:
        await held.own(LEADERSHIP).append(encode_record(Ballot(3, B.raw)))
        view = View(held, LEADERSHIP, Terms, name="terms", by_author=False, on_error=print)
        await view.open()
        assert view.state().voted(PeerId(A.raw)) == (3, B.raw)
        await view.close()
