"""One member's part in choosing a leader: Raft's rules of voting (Ongaro and Ousterhout 2014, 5.2).

Sans-IO. Owns term, role and times; the ballot is made durable by who drives it, before it is sent.
A member votes once in each term, only for one that holds all that it holds itself, and for nobody
while it hears a leader: so whoever is cut off for a while does not disturb the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tinkex.errors import ConfigurationError
from tinkex.mesh.identity import PeerId


@dataclass(frozen=True, slots=True)
class LeadershipConfig:
    """Times of choosing a leader.

    Raises:
        ConfigurationError: they cannot be.
    """

    beat_s: float = 0.3
    """Seconds between two signs of life of a leader."""
    election_s: float = 1.5
    """Seconds without one after which a member wants to lead; up to twice that, at random."""
    lease_s: float = 1.0
    """Seconds after a majority answered for which a leader takes itself for one."""
    call_timeout_s: float = 1.0
    """Seconds for one question."""
    commit_timeout_s: float = 5.0
    """Seconds in which a majority must hold an entry."""

    def __post_init__(self) -> None:
        if not 0 < self.beat_s < self.lease_s < self.election_s:
            raise ConfigurationError("beat_s must be less than lease_s, and that than election_s")
        if not (self.call_timeout_s > 0 and self.commit_timeout_s > 0):
            raise ConfigurationError("the timeouts must be more than 0")


class Election:
    """A member's view of who leads.

    Args:
        me: this member.
        config: times.
        rng: spreads elections.
        now: monotonic seconds.
    """

    def __init__(self, me: PeerId, config: LeadershipConfig, rng: Random, now: float) -> None:
        self.term = 0
        """The newest that this member knows of."""
        self.leader: PeerId | None = None
        self._me = me
        self._config = config
        self._rng = rng
        self._voted_for: PeerId | None = None
        self._heard_at: float | None = None
        self._lease_until = now
        self._due_at = now
        self.wait(now)

    def restore(self, term: int, voted_for: PeerId | None) -> None:
        """Remember the newest vote of an earlier life."""
        if term > self.term:
            self.term, self._voted_for, self.leader = term, voted_for, None

    def wait(self, now: float) -> None:
        """Wait for a leader for a while, from now."""
        self._due_at = now + self._config.election_s * (1 + self._rng.random())

    def hurry(self, now: float) -> None:
        """Want to lead at once: there is nobody else."""
        self._due_at = now

    def due(self, now: float) -> float:
        """Seconds until this member should want to lead; 0: now."""
        return max(0.0, self._due_at - now)

    @property
    def leads(self) -> bool:
        """Whether this member was elected and knows of nobody newer."""
        return self.leader == self._me

    def confirmed(self, now: float) -> bool:
        """Whether it leads, and a majority said so a moment ago."""
        return self.leads and now < self._lease_until

    def begin(self, now: float) -> int:
        """Want to lead, in a new term; the vote for oneself is to be made durable."""
        self.term += 1
        self.leader, self._voted_for = None, self._me
        self.wait(now)
        return self.term

    def win(self, term: int, sent_at: float) -> bool:
        """A majority voted, and holds the term's record; whether it is still the newest term."""
        if term != self.term:
            return False
        self.leader = self._me
        self.extend(sent_at)
        return True

    def extend(self, sent_at: float) -> None:
        """A majority answered what was sent at a time."""
        self._lease_until = max(self._lease_until, sent_at + self._config.lease_s)

    def step_down(self, now: float, term: int = 0) -> None:
        """Lead no more: somebody is newer, or no majority answers."""
        if term > self.term:
            self.term, self._voted_for = term, None
        if self.leads:
            self.leader = None
        self.wait(now)

    def give_way(self, now: float) -> None:
        """Lead no more, and let the others want to lead first."""
        self.step_down(now)
        self._due_at += self._config.election_s

    def may_vote(self, candidate: PeerId, term: int, now: float) -> bool:
        """Whether a vote for a candidate is open to this member, but for what the other holds."""
        if self.hears_a_leader(now) or term < self.term:
            return False
        if term > self.term:
            self.step_down(now, term)
        return self.has_not_voted(candidate)

    def hears_a_leader(self, now: float) -> bool:
        """Whether a leader gave a sign of life within the time that an election waits."""
        if self.leads:
            return self.confirmed(now)
        return self._heard_at is not None and now < self._heard_at + self._config.election_s

    def has_not_voted(self, candidate: PeerId) -> bool:
        """Whether this term's vote is still free, or is this candidate's already."""
        return self._voted_for in {None, candidate}

    def vote(self, candidate: PeerId, now: float) -> None:
        """Vote; the ballot is to be made durable before it is sent."""
        self._voted_for = candidate
        self.wait(now)

    def hear(self, leader: PeerId, term: int, now: float) -> bool:
        """A leader's sign of life; whether it is one of the newest term."""
        if term < self.term:
            return False
        if term > self.term:
            self.step_down(now, term)
        self.leader = leader
        self._heard_at = now
        self.wait(now)
        return True
