"""Attacks on the choice of a leader."""

from dataclasses import dataclass
from random import Random

from mesh_attacks.registry import Suite, nothing, one_each
from mesh_feeds import key
from mesh_replication import FeedWorld

from tinkex.errors import TinkerError
from tinkex.mesh.api.leadership import AskVote
from tinkex.mesh.feeds.election import Election, LeadershipConfig
from tinkex.mesh.feeds.entry import FIRST, sign_entry
from tinkex.mesh.feeds.leadership import LED, Leadership
from tinkex.mesh.feeds.policy import LEADERSHIP
from tinkex.mesh.feeds.terms import Ballot, Term, Terms, encode_record
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.transport.base import Contact

A, B, C = (key(number).peer_id for number in (1, 2, 3))


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    terms: type = Terms
    election: type = Election
    leadership: type = Leadership


def record(author, payload):
    return sign_entry(
        key(author),
        feed=LEADERSHIP,
        epoch=bytes(16),
        sequence=1,
        previous=FIRST,
        time=1,
        payload=payload,
    )


async def term_that_nobody_voted_for(_, classes):
    ballot = record(1, encode_record(Ballot(1, A.raw))).encoded()
    term = Term(1, 0, {}, {}, (A.raw, B.raw, C.raw), (ballot,))
    terms = classes.terms()
    try:
        terms.fold(record(1, encode_record(term)))
    except TinkerError:
        return True
    return terms.last == 0


async def second_vote_in_one_term(_, classes):
    member = classes.election(A, LeadershipConfig(), Random(1), 0.0)
    assert member.may_vote(B, 1, 10.0)
    member.vote(B, 10.0)
    return not member.may_vote(C, 1, 10.0)


async def candidate_that_disturbs_a_leader(_, classes):
    member = classes.election(A, LeadershipConfig(), Random(1), 0.0)
    member.hear(B, 1, 10.0)
    return not member.may_vote(C, 7, 10.1) and member.term == 1


async def votes(folder, classes, asker_is_member):
    """Whether a member that holds an entry votes for an asker that holds none."""
    async with FeedWorld(folder) as world:
        voter, asker = await world.node(), await world.node()
        members = {voter.peer_id, asker.peer_id} if asker_is_member else {voter.peer_id, A}
        leadership = classes.leadership(
            voter.peers,
            voter.store,
            voter.replicator,
            members=lambda: members,
            contact_of=Contact,
            clock=world.clock,
            rng=Random(1),
            on_error=world.errors.append,
        )
        if asker_is_member:
            await voter.write(LED, "might have been committed")
        call = Call(asker.peer_id, None, 1e9)
        try:
            vote = await leadership.rpc_vote(AskVote(5, 0, ()), call)
        except TinkerError:
            return False
        return vote.ballot is not None


async def candidate_that_lacks_what_was_committed(folder, classes):
    return not await votes(folder, classes, asker_is_member=True)


async def candidate_that_the_root_did_not_name(folder, classes):
    return not await votes(folder, classes, asker_is_member=False)


async def lacks_nothing(*_):
    return False


SUITE = Suite(
    "leadership",
    Classes(),
    one_each(
        {
            term_that_nobody_voted_for: ("terms", "check_votes", nothing),
            second_vote_in_one_term: ("election", "has_not_voted", lambda *_: True),
            candidate_that_disturbs_a_leader: ("election", "hears_a_leader", lambda *_: False),
            candidate_that_lacks_what_was_committed: ("leadership", "lacks", lacks_nothing),
            candidate_that_the_root_did_not_name: ("leadership", "check_member", nothing),
        }
    ),
)
