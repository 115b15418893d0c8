"""One decision after another: into the log, into the folds, to the gateways.

Owns their order. Nothing is answered before it is on the disk, nothing is decided on a state that
lacks what was decided before, and what gateways need to know is in their feed before the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from tinkex._clock import Clock
from tinkex.errors import DamagedDataError, NoQuorumError, StorageError, TinkerError
from tinkex.mesh.accounts.accounts import Decision
from tinkex.mesh.accounts.events import (
    AuthEvent,
    NetworkEvent,
    PublicEvent,
    encode_events,
    network_form,
    public_form,
)
from tinkex.mesh.feeds.entry import MAX_PAYLOAD_BYTES, Entry
from tinkex.mesh.identity import PeerId
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.trust.network import NetworkInfo

T = TypeVar("T")
Told = TypeVar("Told", PublicEvent, NetworkEvent)

TOLD_BYTES = MAX_PAYLOAD_BYTES // 4
"""After so many no more events are put into one entry of what others are told."""


class Journal(Protocol):
    """One's own feed."""

    async def append(self, payload: bytes, /) -> object:
        """Write an entry; it is on the disk and in the views when this returns."""


class Leadership(Protocol):
    """Whether this auth worker may write, and writing so that it stays written."""

    async def confirm(self) -> None:
        """Make sure that it may.

        Raises:
            NoQuorumError: it may not, or too few others can be reached to know.
        """

    async def commit(self, payload: bytes, /) -> object:
        """Write an entry of "accounts-private", to the disks of as many as it takes.

        Raises:
            NoQuorumError: too few hold it; whether it counts is not known yet.
            StorageError: the disk is full or refuses.
        """

    async def give_way(self) -> None:
        """Let another auth worker write, if there is one that could: this one's disk refuses."""

    @property
    def is_leader(self) -> bool:
        """Whether it may, as far as is known just now."""

    def mark(self) -> int:
        """Another number after others may have written, or when `counts` may say otherwise."""

    def counts(self, entry: Entry) -> bool:
        """Whether an entry counts: its author led when it wrote it."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` told when other entries count than before."""

    def on_leading(self, callback: Callable[[], None]) -> None:
        """Have `callback` told when this worker begins to lead."""


class SoleMember:
    """Leads where the network has no other auth worker, and nowhere else.

    Args:
        peer: this auth worker.
        network: the network as it is known now.
        journal: its own feed.
    """

    def __init__(self, peer: PeerId, network: Callable[[], NetworkInfo], journal: Journal) -> None:
        self._peer = peer
        self._network = network
        self._journal = journal

    async def confirm(self) -> None:
        """Make sure that there is nobody else to ask.

        Raises:
            NoQuorumError: there is.
        """
        members = self._network().members
        if not self.is_leader:
            raise NoQuorumError(
                f"the network's description names {len(members)} auth workers, and this one "
                "cannot write without a majority of them: nothing was written; start it anew, so "
                "that it asks them"
            )

    async def commit(self, payload: bytes, /) -> object:
        """Write an entry.

        Raises:
            StorageError: the disk is full or refuses.
        """
        return await self._journal.append(payload)

    async def give_way(self) -> None:
        """There is nobody else."""

    @property
    def is_leader(self) -> bool:
        """Whether there is nobody else to ask."""
        return self._network().members == (self._peer.raw,)

    def mark(self) -> int:
        """Always the same: nobody else writes."""
        return 0

    def counts(self, entry: Entry) -> bool:  # noqa: ARG002 - as `Leadership`
        """Every entry counts."""
        return True

    def on_change(self, callback: Callable[[], None]) -> None:
        """It never changes."""

    def on_leading(self, callback: Callable[[], None]) -> None:
        """It leads from the start."""


class AuthLog:
    """Carries decisions out.

    Args:
        leadership: says whether decisions may be taken here, and writes them.
        public: the gateways' feed.
        network: every member's.
        current: waits until the folds have all that is stored.
        untold: what others should have been told, by the folds, and were not.
        tasks: owns decisions whose caller has gone: they are carried out to the end.
        clock: tells the time.
    """

    def __init__(
        self,
        leadership: Leadership,
        public: Journal,
        network: Journal,
        *,
        current: Callable[[], Awaitable[None]],
        untold: Callable[[], tuple[list[PublicEvent], list[NetworkEvent]]],
        tasks: Tasks,
        clock: Clock,
    ) -> None:
        self._leadership = leadership
        self._public = public
        self._network = network
        self._current = current
        self._look_up_untold = untold
        self._tasks = tasks
        self._clock = clock
        self._turn = asyncio.Lock()
        self._mark: int | None = None
        self._untold: list[PublicEvent] = []
        self._untold_to_all: list[NetworkEvent] = []

    async def carry(self, decide: Callable[[float], Awaitable[Decision[T]]]) -> T:
        """Decide, write, and answer.

        Args:
            decide: given the time, in unix seconds; called when it is its turn, on the state that
                everything before came to.

        Raises:
            NoQuorumError: this auth worker may not write.
            StorageError: the disk is full or refuses.
            TinkerError: what was decided, or raised while deciding.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tasks.spawn(self._carry(decide, answer), name="decide on accounts")
        return await answer

    async def note(self, *events: AuthEvent) -> None:
        """Write events that need no deciding.

        Raises:
            NoQuorumError, StorageError: as `carry`.
        """

        async def decided(_: float) -> Decision[None]:
            return Decision(events, None)

        await self.carry(decided)

    async def tell(self, events: list[PublicEvent], to_all: list[NetworkEvent]) -> None:
        """Tell gateways, and every member, what they may have been told before.

        Raises:
            NoQuorumError, StorageError: as `carry`.
        """
        self._untold.extend(events)
        self._untold_to_all.extend(to_all)
        await self.note()

    async def _carry(
        self,
        decide: Callable[[float], Awaitable[Decision[T]]],
        answer: asyncio.Future[T],
    ) -> None:
        try:
            async with self._turn:
                found = await self._decided(decide)
        except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
            if isinstance(error, StorageError | DamagedDataError):
                self._tasks.spawn(self._leadership.give_way(), name="let another lead")
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(found)
        finally:
            answer.cancel()

    async def _decided(self, decide: Callable[[float], Awaitable[Decision[T]]]) -> T:
        await self._leadership.confirm()
        await self._current()
        if self._mark != self._leadership.mark():
            self._make_good()
        await self._tell()
        decision = await decide(self._clock.now())
        if decision.events:
            await self._leadership.commit(encode_events(decision.events))
            self._untold.extend(public_form(decision.events))
            self._untold_to_all.extend(network_form(decision.events))
            await self._tell()
        if isinstance(decision.answer, TinkerError):
            raise decision.answer
        return decision.answer

    def _make_good(self) -> None:
        """Find what was decided, here or by whoever led before, and not told for a crash."""
        self._mark = self._leadership.mark()
        public, to_all = self._look_up_untold()
        self._untold.extend(public)
        self._untold_to_all.extend(to_all)

    async def _tell(self) -> None:
        """Write what others are to know; what could not be written is tried before all else."""
        await _written(self._network, self._untold_to_all)
        await _written(self._public, self._untold)


async def _written(journal: Journal, events: list[Told]) -> None:
    """Write events, in as many entries as they need, and take them off their list.

    All that gateways know is told once more where the root was replaced: no entry holds that.
    """
    while events:
        count, size = 0, 0
        while count < len(events) and (not count or size < TOLD_BYTES):
            size += len(encode_events(events[count : count + 1]))
            count += 1
        await journal.append(encode_events(events[:count]))
        del events[:count]
