"""One of several auth workers writes accounts, while a majority of them is there.

Owns elections and commits: drives `election` over calls, keeps ballots and terms in the
"leadership" feed, and has a majority hold what the leader wrote. Without one, reads go on and
writes fail with NoQuorumError. Members are those that the network's root signed; change one at a
time, so that any two majorities share a member.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from random import Random

from tinkex._clock import Clock
from tinkex._timers import Timers
from tinkex.errors import NoQuorumError, PermissionDeniedError, TinkerError
from tinkex.mesh.api.leadership import (
    AskVote,
    Held,
    HeldUpTo,
    Hold,
    LeadershipApi,
    Vote,
)
from tinkex.mesh.feeds.election import Election, LeadershipConfig
from tinkex.mesh.feeds.entry import ChainId, Entry, EntryId
from tinkex.mesh.feeds.policy import ACCOUNTS_PRIVATE, LEADERSHIP
from tinkex.mesh.feeds.replication import Replicator
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.terms import Ballot, Term, Terms, encode_record, majority, read_ballot
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact

_LOG = logging.getLogger("tinkex.mesh.feeds")
LED = ACCOUNTS_PRIVATE
"""The feed that only the leader's entries count in. What gateways are told follows from it, and is
written after it was committed."""


class Leadership(LeadershipApi):
    """One auth worker's part.

    Args:
        peers: calls the others; it gets this service.
        store: an open one.
        replicator: gets what this worker lacks.
        members: the auth workers that the root signed, this one among them, as of now.
        contact_of: where a member is.
        clock: tells and waits for time.
        rng: spreads elections.
        config: times.
        on_error: told of an exception that ended background work, and of entries that make no
            sense.
    """

    def __init__(
        self,
        peers: Peers,
        store: FeedStore,
        replicator: Replicator,
        *,
        members: Callable[[], Collection[PeerId]],
        contact_of: Callable[[PeerId], Contact],
        clock: Clock,
        rng: Random,
        config: LeadershipConfig | None = None,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._peers = peers
        self._store = store
        self._replicator = replicator
        self._members = members
        self._contact_of = contact_of
        self._clock = clock
        self._config = config or LeadershipConfig()
        self._me = store.peer_id
        self._tasks = Tasks(on_error=on_error)
        self._timers = Timers(clock, on_error=on_error)
        self._terms: View[Terms] = View(
            store, LEADERSHIP, Terms, name="terms", by_author=False, on_error=on_error
        )
        self.election = Election(self._me, self._config, rng, clock.monotonic())
        self._terms.on_refold(self._look)
        self._ballots = asyncio.Lock()
        self._mark = 0
        self._on_change: list[Callable[[], None]] = []
        self._on_leading: list[Callable[[], None]] = []
        self._end: list[Callable[[], None]] = []
        peers.serve(self)

    # --- for the auth worker --------------------------------------------------

    async def start(self) -> None:
        """Take part. Call it once peers and replicator have started."""
        await self._terms.open()
        term, candidate = self._terms.state().voted(self._me)
        self.election.restore(term, PeerId(candidate) if candidate else None)
        self.election.restore(self._terms.state().last, None)
        self.election.wait(self._clock.monotonic())
        if set(self._members()) == {self._me}:
            self.election.hurry(self._clock.monotonic())
        self._mark = self.mark()
        self._end = [self._store.subscribe(LEADERSHIP, self._told)]
        self._timers.start()
        self._tasks.keep(self._run, name="lead or follow", clock=self._clock)

    async def stop(self) -> None:
        """Take part no more. Harmless twice."""
        while self._end:
            self._end.pop()()
        await self._tasks.stop()
        await self._timers.stop()
        await self._terms.close()

    @property
    def is_leader(self) -> bool:
        """Whether this worker leads, as a majority confirmed a moment ago."""
        return self.election.confirmed(self._clock.monotonic())

    @property
    def leader(self) -> PeerId | None:
        """Who leads, as far as this worker knows."""
        return self.election.leader

    def counts(self, entry: Entry) -> bool:
        """Whether an entry of the led feed counts: for that feed's view."""
        return self._terms.state().counts(entry)

    def mark(self) -> int:
        """Changes with what `counts` says."""
        return self._terms.state().mark

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` told when other entries count than before; give it a view's `refold`."""
        self._on_change.append(callback)

    def on_leading(self, callback: Callable[[], None]) -> None:
        """Have `callback` told when this worker begins to lead."""
        self._on_leading.append(callback)

    def _told(self, _: Sequence[Entry]) -> None:
        self._look()  # the view of terms was told first, unless it folds again

    def _look(self) -> None:
        if self.mark() != self._mark:
            self._mark = self.mark()
            for callback in self._on_change:
                callback()

    async def confirm(self) -> None:
        """Make sure that this worker may write.

        Raises:
            NoQuorumError: another leads, or nobody.
        """
        if self.is_leader:
            return
        leader = self.election.leader
        if leader is not None and leader != self._me:
            raise NoQuorumError(f"the auth worker {leader.short} leads: ask that one")
        raise NoQuorumError(
            "no majority of the network's auth workers can be reached: nothing was written; "
            "start more of them, or try again in some seconds",
            retry_after_ms=self._config.election_s * 2000,
        )

    async def commit(self, payload: bytes) -> EntryId:
        """Write an entry of the led feed, and wait until a majority holds it.

        Raises:
            NoQuorumError: this worker does not lead (nothing was written), or no majority answered
                in time: then whether the entry counts, the next leader decides, and the error's
                category is "unknown".
            StorageError: as `OwnFeed.append`.
        """
        await self.confirm()
        written = await self._store.own(LED).append(payload)
        await self.committed(written)
        return written

    async def committed(self, written: EntryId) -> None:
        """Wait until a majority holds an entry that this leader wrote.

        Raises:
            NoQuorumError: as `commit`.
        """
        term, leads = self.election.term, self.election.leads
        if leads and await self._held_by_majority(term, written):
            return
        self.election.step_down(self._clock.monotonic())
        raise NoQuorumError(
            "no majority of the network's auth workers holds what was written: whether it counts "
            "is not known yet; look, and try again in some seconds",
            category="unknown",
            retry_after_ms=self._config.election_s * 2000,
        )

    async def give_way(self) -> None:
        """Lead no more, as this worker's disk takes nothing; unless the others are too few to."""
        term = self.election.term
        could = self.election.leads and await self._gather(
            lambda member: self._ask_one(member, Hold(term, ())), 0
        )
        if could and self.election.term == term:
            _LOG.warning("this worker cannot write, and lets another auth worker lead")
            self.election.give_way(self._clock.monotonic())

    # --- what others ask ------------------------------------------------------

    async def rpc_vote(self, request: AskVote, call: Call) -> Vote:
        """Vote for a member, or not: for one in each term."""
        self.check_member(call.peer)
        async with self._ballots:
            now = self._clock.monotonic()
            if not self.election.may_vote(call.peer, request.term, now):
                return Vote(self.election.term, None)
            if await self.lacks(request):
                return Vote(self.election.term, None, behind=True)
            self.election.vote(call.peer, now)
            ballot = await self._ballot(request.term, call.peer)
            return Vote(request.term, ballot)

    async def rpc_hold(self, request: Hold, call: Call) -> Held:
        """Say whether what the leader wrote is held here; get it where it is not."""
        self.check_member(call.peer)
        if not self.election.hear(call.peer, request.term, self._clock.monotonic()):
            return Held(self.election.term, ok=False)
        ok = await self._holds(request.held)
        if not ok:
            await self._replicator.sync(Contact(call.peer))
            ok = await self._holds(request.held)
        return Held(self.election.term, ok and request.term == self.election.term)

    def check_member(self, peer: PeerId) -> None:
        """Refuse whoever is none of the members that the root signed.

        Raises:
            PermissionDeniedError: it is none.
        """
        if peer not in self._members():
            raise PermissionDeniedError("you are none of the auth workers that the root named")

    async def lacks(self, request: AskVote) -> bool:
        """Whether a candidate lacks what this member holds: it might have been committed."""
        if request.last_term < self._terms.state().last:
            return True
        theirs = {(h.author, h.epoch): h.sequence for h in request.held if h.feed == LED}
        return any(
            theirs.get((each.chain.author.raw, each.chain.epoch), -1) < each.last
            for each in await self._store.held(LED)
        )

    async def _holds(self, wanted: Collection[HeldUpTo]) -> bool:
        for each in wanted:
            chain = ChainId(PeerId(each.author), each.feed, each.epoch)
            head = await self._store.head(chain)
            if head is None or head.sequence < each.sequence:
                return False
        return True

    async def _ballot(self, term: int, candidate: PeerId) -> bytes:
        """Vote in an entry of one's own: durable, and known to others if this disk is lost."""
        payload = encode_record(Ballot(term, candidate.raw))
        written = await self._store.own(LEADERSHIP).append(payload)
        entry = await self._store.entry(written)
        assert entry is not None
        return entry.encoded()

    # --- leading --------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            now = self._clock.monotonic()
            if self.election.leads:
                await self._beat()
                await self._pause(self._config.beat_s)
            elif self.election.due(now) > 0:
                await self._pause(self.election.due(now))
            elif self._me in self._members():
                await self._try_to_lead()
            else:
                self.election.wait(now)

    async def _pause(self, seconds: float) -> None:
        over = asyncio.Event()
        self._timers.call_later(seconds, over.set)
        await over.wait()

    async def _beat(self) -> None:
        term, sent_at = self.election.term, self._clock.monotonic()
        answered = await self._ask_to_hold(term, ())
        if answered:
            self.election.extend(sent_at)
        elif not self.election.confirmed(self._clock.monotonic()):
            self.election.step_down(self._clock.monotonic())

    async def _try_to_lead(self) -> None:
        try:
            await self._campaign()
        except TinkerError as error:
            # Such as a full disk, which takes no ballot. Another may lead; this one tries again.
            _LOG.warning("this worker cannot stand for leader: %s", error)
            self.election.wait(self._clock.monotonic())

    async def _campaign(self) -> None:
        async with self._ballots:
            term = self.election.begin(self._clock.monotonic())
            ballots = {self._me: await self._ballot(term, self._me)}
        question = await self._question(term)
        await self._gather(lambda member: self._ask_vote(member, question, ballots), len(ballots))
        members = tuple(member.raw for member in sorted(self._members()))
        given = {voter: ballot for voter, ballot in ballots.items() if voter.raw in members}
        if len(given) < majority(members) or self.election.term != term:
            return
        sent_at = self._clock.monotonic()
        written = await self._open_term(term, members, tuple(given.values()))
        held = await self._held_by_majority(term, written)
        if held and self.election.win(term, sent_at):
            for callback in self._on_leading:
                callback()

    async def _question(self, term: int) -> AskVote:
        held = [
            HeldUpTo(each.chain.author.raw, LED, each.chain.epoch, each.last)
            for each in await self._store.held(LED)
            if each.last >= 0
        ]
        return AskVote(term, self._terms.state().last, tuple(held))

    async def _ask_vote(
        self, member: PeerId, question: AskVote, ballots: dict[PeerId, bytes]
    ) -> bool:
        contact = self._contact_of(member)
        for _ in range(2):
            reply = await self._peers.call(
                contact,
                LeadershipApi.rpc_vote,
                question,
                timeout_s=self._config.call_timeout_s,
            )
            if reply.ballot is not None:
                voter = read_ballot(reply.ballot, term=question.term, candidate=self._me)
                ballots[voter] = reply.ballot
                return True
            if reply.term > question.term:
                self.election.step_down(self._clock.monotonic(), reply.term)
            if not reply.behind:
                return False
            await self._replicator.sync(contact)
            question = await self._question(question.term)
        return False

    async def _open_term(
        self, number: int, members: tuple[bytes, ...], ballots: tuple[bytes, ...]
    ) -> EntryId:
        terms = self._terms.state()
        ends: dict[str, int] = {}
        if terms.last_leader is not None:
            heads = await self._store.heads(LED, terms.last_leader)
            ends[LED] = max((head.time for head, _ in heads), default=-1)
        starts = {LED: self._store.latest_time(LED)}
        record = Term(number, terms.last, ends, starts, members, ballots)
        return await self._store.own(LEADERSHIP).append(encode_record(record))

    async def _held_by_majority(self, term: int, written: EntryId) -> bool:
        wanted = HeldUpTo(written.author.raw, written.feed, written.epoch, written.sequence)
        until = self._clock.monotonic() + self._config.commit_timeout_s
        while self.election.term == term:
            sent_at = self._clock.monotonic()
            if await self._ask_to_hold(term, (wanted,)):
                if self.election.term != term:
                    return False
                self.election.extend(sent_at)
                return True
            if self._clock.monotonic() >= until:
                return False
            await self._pause(min(0.1, self._config.beat_s))
        return False

    async def _ask_to_hold(self, term: int, held: tuple[HeldUpTo, ...]) -> bool:
        """Whether a majority, this member among them, holds it and knows no newer term."""
        return await self._gather(lambda member: self._ask_one(member, Hold(term, held)), 1)

    async def _ask_one(self, member: PeerId, hold: Hold) -> bool:
        reply = await self._peers.call(
            self._contact_of(member),
            LeadershipApi.rpc_hold,
            hold,
            timeout_s=self._config.call_timeout_s,
        )
        if reply.term > hold.term:
            self.election.step_down(self._clock.monotonic(), reply.term)
        return reply.ok

    async def _gather(self, ask: Callable[[PeerId], Awaitable[bool]], have: int) -> bool:
        """Ask all other members at once, until a majority said yes or all answered."""
        members = sorted(set(self._members()))  # in order: simulations repeat
        needed = majority([member.raw for member in members])

        async def asked(member: PeerId) -> bool:
            try:
                return await ask(member)
            except TinkerError:
                return False  # it is away, or not of our opinion

        others = [member for member in members if member != self._me]
        waiting = [asyncio.ensure_future(asked(member)) for member in others]
        try:
            while waiting and have < needed:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                have += sum(task.result() for task in waiting if task.done())
                waiting = [task for task in waiting if not task.done()]
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return have >= needed
