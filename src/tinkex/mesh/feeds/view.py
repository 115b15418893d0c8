"""Views: what a feed's entries come to, kept in memory and current.

Owns the order of folding, saving and rebuilding; what is folded is the state's business. Every
store that holds the same entries has equal views: entries are folded in the feed's one order
(`Entry.order`). One that comes late (the line of a restored backup) makes the view fold again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import msgspec

from tinkex.errors import StorageError, UnsupportedError
from tinkex.mesh.feeds import saved
from tinkex.mesh.feeds.database import Transaction
from tinkex.mesh.feeds.entry import ChainId, Entry
from tinkex.mesh.feeds.reading import Held
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.identity import PEER_ID_BYTES, PeerId
from tinkex.mesh.tasks import Tasks

SAVE_EVERY = 2000
"""Entries after which a view's state is saved, so that the next start folds few."""


class State(Protocol):
    """What entries come to. Folding must be a function of state and entry alone."""

    def fold(self, entry: Entry) -> None:
        """Take an entry in. What it raises is reported, and the entry skipped."""

    def dump(self) -> bytes:
        """The state as bytes."""


S_co = TypeVar("S_co", bound=State, covariant=True)


class Restore(Protocol[S_co]):
    """Makes a state from what `dump` gave; from None, an empty one."""

    def __call__(self, data: bytes | None, /) -> S_co:
        """Make it."""


S = TypeVar("S", bound=State)
_Order = tuple[int, bytes, bytes, int]
_NO_ORDER: _Order = (-1, b"", b"", -1)


class EntryFilter(Protocol):
    """Says which entries count, where not all do; `Leadership` does."""

    def counts(self, entry: Entry) -> bool:
        """Whether an entry is to be folded."""

    def mark(self) -> int:
        """Changes when `counts` may say otherwise than before."""


class _Kept(msgspec.Struct, array_like=True):
    """A saved part of a view."""

    positions: list[tuple[bytes, bytes, int]]
    order: _Order
    state: bytes
    mark: int = 0


@dataclass(slots=True)
class _Part(Generic[S]):
    """One author's share of a view, or the whole of a joint one."""

    state: S
    positions: dict[ChainId, int] = field(default_factory=dict)
    order: _Order = _NO_ORDER
    mark: int = 0
    """Of the filter, when its folding began."""


class View(Generic[S]):
    """A feed's entries, folded.

    Args:
        store: an open store.
        feed: the feed's name.
        restore: makes a state.
        name: the view's, under which it is saved.
        version: raise it when `fold` means something else: what was saved is then not used.
        by_author: a state for each author, which folds that author's entries alone. False: one
            state, which folds all authors' entries in the feed's order.
        only: says which entries count; None: all. Call `refold` when it changes its mind.
        on_error: told of an entry that `fold` raised at, and of failed background work.
    """

    def __init__(
        self,
        store: FeedStore,
        feed: str,
        restore: Restore[S],
        *,
        name: str,
        version: int = 1,
        by_author: bool = True,
        only: EntryFilter | None = None,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.feed = feed
        self.name = f"{name}@{version}"
        self.by_author = by_author
        self.skipped = 0
        """Entries that `fold` raised at."""
        self._store = store
        self._restore = restore
        self._only = only
        self._on_error = on_error
        self._tasks = Tasks(on_error=on_error)
        self._parts: dict[PeerId | None, _Part[S]] = {}
        self._held_back: dict[PeerId | None, list[Entry]] = {}
        self._changed: dict[PeerId | None, None] = {}
        """Parts whose past changed while they were being folded."""
        self._early: list[Entry] | None = None
        self._failed: dict[PeerId | None, Exception] = {}
        """Why parts could not be folded again: what is here of them is not given out."""
        self._on_refold: list[Callable[[], None]] = []
        self._unsaved = 0
        self._end: list[Callable[[], None]] = []

    async def open(self) -> None:
        """Fold what is stored, and follow what comes.

        Raises:
            DamagedDataError: the store is damaged.
            UnsupportedError: entries were pruned whose snapshot knows nothing of this view.
        """
        self._early = []
        self._end = [
            self._store.subscribe(self.feed, self._arrived),
            self._store.on_rebase(self._rebased),
            self._store.register(self),
        ]
        try:
            for key in await self._load():
                await self._fill(key, self._parts.get(key))
            while self._changed:
                await self._fill(next(iter(self._changed)), None)
        except BaseException:
            self._unfollow()
            raise
        early, self._early = self._early, None
        for entry in early:
            self._take(entry)

    async def close(self) -> None:
        """Stop following and save. Harmless twice."""
        if not self._end:
            return
        self._unfollow()
        await self._tasks.stop()
        if not self._held_back and not self._failed:
            await self.save()

    def _unfollow(self) -> None:
        while self._end:
            self._end.pop()()

    async def current(self) -> None:
        """Wait until nothing is being folded again; appended entries are in the view at once."""
        for key in list(self._failed):
            self._retry(key)
        await self._tasks.finished()

    def refold(self) -> None:
        """Fold everything again: other entries count than before."""
        for key in list(self._parts):
            self._again(key)

    def on_refold(self, callback: Callable[[], None]) -> None:
        """Have `callback` told whenever a part was folded again."""
        self._on_refold.append(callback)

    def _mark(self) -> int:
        return 0 if self._only is None else self._only.mark()

    def authors(self) -> list[PeerId]:
        """Whose entries are folded here."""
        found = {chain.author for part in self._parts.values() for chain in part.positions}
        return sorted(found)

    def state(self, author: PeerId | None = None) -> S:
        """What an author's entries came to; of a joint view, what all did (None).

        Raises:
            TinkerError: the view could not be folded again. Where the disk refused, that is tried
                once more; else close it and open it anew.
        """
        self._check(author)
        part = self._parts.get(author)
        return self._restore(None) if part is None else part.state

    def covered(self, author: PeerId) -> tuple[Mapping[ChainId, int], bytes]:
        """An author's folded numbers and what they came to, for a snapshot.

        Raises:
            UnsupportedError: other authors' entries are folded with them.
            TinkerError: as `state`.
        """
        self._check(self._key(author))
        part = self._parts.get(self._key(author))
        if part is None:
            return {}, self._restore(None).dump()
        if any(chain.author != author for chain in part.positions):
            raise UnsupportedError(
                f"{self.feed!r} cannot be pruned: the view {self.name!r} folds several authors' "
                "entries together, and a snapshot is one author's"
            )
        return dict(part.positions), part.state.dump()

    async def state_at(self, author: PeerId, upto: Mapping[ChainId, int]) -> bytes:
        """What an author's entries up to these numbers come to: the same at everybody.

        Folds them anew from the author's snapshot on, so the view need not be open.

        Args:
            author: whose.
            upto: the number of the last entry of each chain; other chains are left out.

        Raises:
            UnsupportedError: other authors' entries are folded with them.
            LogForkError, DamagedDataError: as `FeedStore.entries`.
        """
        if not self.by_author:
            raise UnsupportedError(
                f"the view {self.name!r} folds several authors' entries together"
            )
        self._store.check_not_forked(author)
        part = await self._begin(author) or _Part(self._restore(None))
        async for entry in self._store.history(self.feed, author=author, beyond=part.positions):
            if entry.sequence <= upto.get(entry.chain, -1):
                self._counted(part.state, entry)
        return part.state.dump()

    async def save(self) -> None:
        """Keep the states, so that the next start folds only what came after."""
        self._unsaved = 0
        kept = {
            b"" if key is None else key.raw: msgspec.msgpack.encode(
                _Kept(
                    [(c.author.raw, c.epoch, number) for c, number in part.positions.items()],
                    part.order,
                    part.state.dump(),
                    part.mark,
                )
            )
            for key, part in self._parts.items()
        }

        def put(transaction: Transaction) -> None:
            saved.drop_view(transaction.connection, self.name)
            for part, data in kept.items():
                saved.put_view(transaction.connection, self.name, part, data)

        await self._store.database.write(put)

    # --- following ------------------------------------------------------------

    def _arrived(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._take(entry)
        if self._unsaved >= SAVE_EVERY and not self._held_back and not self._failed:
            self._unsaved = 0
            self._tasks.spawn(self.save(), name=f"save {self.name}")

    def _take(self, entry: Entry) -> None:
        key = self._key(entry.author)
        if self._early is not None:
            self._early.append(entry)
            return
        if key in self._held_back:
            self._held_back[key].append(entry)
            return
        if key in self._failed:
            self._again(key)
            return
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = _Part(self._restore(None), mark=self._mark())
        at = part.positions.get(entry.chain, -1)
        if entry.sequence <= at:
            return
        in_order = entry.order > part.order and entry.sequence == at + 1
        if in_order and part.mark == self._mark():
            self._fold(part, entry)
        else:
            self._again(key)

    def _fold(self, part: _Part[S], entry: Entry) -> None:
        part.positions[entry.chain] = entry.sequence
        part.order = max(part.order, entry.order)
        self._unsaved += 1
        error = self._counted(part.state, entry)
        if error is not None:
            self.skipped += 1
            self._on_error(error)

    def _counted(self, state: S, entry: Entry) -> Exception | None:
        if entry.opens_epoch or not (self._only is None or self._only.counts(entry)):
            return None
        try:
            state.fold(entry)
        except Exception as error:  # noqa: BLE001 - one bad entry must not stop the view
            return error
        return None

    def _key(self, author: PeerId) -> PeerId | None:
        return author if self.by_author else None

    # --- folding again --------------------------------------------------------

    def _rebased(self, feed: str, author: PeerId) -> None:
        if feed not in {"", self.feed}:
            return
        if self.by_author and self._store.forked(author):
            self._parts.pop(author, None)
        key = self._key(author)
        if self._early is None:
            self._again(key)
        else:
            self._changed[key] = None

    def _again(self, key: PeerId | None) -> None:
        if key in self._held_back:
            self._changed[key] = None
        else:
            self._held_back[key] = []
            self._tasks.spawn(self._fold_again(key), name=f"fold {self.name} again")

    def _check(self, key: PeerId | None) -> None:
        failed = self._failed.get(key)
        if failed is not None:
            self._retry(key)
            raise failed

    def _retry(self, key: PeerId | None) -> None:
        """Fold again what the disk refused to give; what it gave will say the same once more."""
        if self._end and isinstance(self._failed[key], StorageError):
            self._again(key)

    async def _fold_again(self, key: PeerId | None) -> None:
        try:
            await self._fill(key, None)
        except Exception as error:
            # What is here stays as it is and is not given out any more.
            self._failed[key] = error
            del self._held_back[key]
            raise
        self._failed.pop(key, None)
        for entry in self._held_back.pop(key):
            self._take(entry)
        for callback in tuple(self._on_refold):
            callback()

    async def _fill(self, key: PeerId | None, part: _Part[S] | None) -> None:
        """Fold what is stored beyond a saved part, or from the start.

        Once more where the filter changed its mind meanwhile, an author was shut out or a snapshot
        took the place of entries: what was folded before is of the old.
        """
        while True:
            mark = self._mark()
            if key in self._changed:
                del self._changed[key]
                part = None
            if (
                part is None
                or part.mark != mark
                or not await self._fold_stored(key, part, in_order=True)
            ):
                part = await self._begin(key)
                if part is not None:
                    part.mark = mark
                    await self._fold_stored(key, part, in_order=False)
            if key not in self._changed and (part is None or part.mark == self._mark()):
                break
        if part is None:
            self._parts.pop(key, None)
        else:
            self._parts[key] = part

    async def _begin(self, key: PeerId | None) -> _Part[S] | None:
        """An empty part, or what the author's snapshot says; None for an author that forked."""
        if key is not None and self._store.forked(key):
            return None
        snapshots = [
            (body, snapshot)
            for body, snapshot in await self._store.snapshots(self.feed)
            if self._key(PeerId(body.author)) == key and not self._store.forked(PeerId(body.author))
        ]
        if not snapshots:
            return _Part(self._restore(None))
        if len(snapshots) > 1 or self.name not in snapshots[0][1].states:
            raise UnsupportedError(
                f"the view {self.name!r} cannot be folded: entries of {self.feed!r} were pruned "
                "whose snapshot does not have it; have their author keep the view before it prunes"
            )
        body, snapshot = snapshots[0]
        author = PeerId(body.author)
        positions = {ChainId(author, self.feed, head.epoch): head.sequence for head in body.covered}
        state = self._restore(snapshot.states[self.name])
        return _Part(state, positions, (body.time, b"\xff" * PEER_ID_BYTES, b"", 0))

    async def _fold_stored(self, key: PeerId | None, part: _Part[S], *, in_order: bool) -> bool:
        """Fold what is stored beyond a part, in order.

        Returns:
            False where an entry belongs before the part's end, and `in_order` forbids that. After
            a snapshot it is allowed: what a snapshot covers cannot be folded again.
        """
        start = part.order
        if key is not None and self._store.forked(key):
            return False
        async for entry in self._store.history(self.feed, author=key, beyond=part.positions):
            if in_order and entry.order <= start:
                return False
            self._fold(part, entry)
        return True

    async def _load(self) -> list[PeerId | None]:
        """Take what was saved, where it still fits what is stored; returns every part there is."""
        held = {each.chain: each for each in await self._store.held(self.feed)}
        kept = await self._store.read(lambda connection: saved.views(connection, self.name))
        for name, data in kept.items():
            saved_part = msgspec.msgpack.decode(data, type=_Kept)
            key = PeerId(name) if name else None
            positions = {
                ChainId(PeerId(author), self.feed, epoch): number
                for author, epoch, number in saved_part.positions
            }
            fits = saved_part.mark == self._mark() and self._fits(key, positions, held)
            if fits and (key is None) is not self.by_author:
                state = self._restore(saved_part.state)
                self._parts[key] = _Part(state, positions, saved_part.order, saved_part.mark)
        authors = {self._key(chain.author) for chain in held}
        return list(authors if self.by_author else {None})

    def _fits(
        self, key: PeerId | None, positions: Mapping[ChainId, int], held: Mapping[ChainId, Held]
    ) -> bool:
        """Whether a saved part is of entries that are held, and of all that were pruned."""
        if any(self._store.forked(chain.author) for chain in positions):
            return False
        if any(chain not in held or held[chain].last < at for chain, at in positions.items()):
            return False
        return all(
            positions.get(chain, -1) >= each.base
            for chain, each in held.items()
            if self._key(chain.author) == key
        )
