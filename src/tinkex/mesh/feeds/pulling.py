"""Asking one peer for what it holds and this worker lacks, as often as one likes.

Owns what is known of that peer between two rounds, so that each asks for the news alone, and what
could not be had yet. Nothing that the peer says is believed: entries, heads, snapshots and proofs
are checked by the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from tinkex._clock import Clock
from tinkex.errors import (
    LogForkError,
    NotFoundError,
    PeerProtocolError,
    PermissionDeniedError,
    TinkerError,
    TrustError,
    UnsupportedError,
)
from tinkex.mesh.api.feeds import (
    EntriesRequest,
    FeedApi,
    ForksRequest,
    HeadsRequest,
    HeldChain,
    HeldSnapshot,
    KeysRequest,
    SnapshotRequest,
)
from tinkex.mesh.feeds.chain import ForkProof, Head, SignedHead
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.entry import ChainId, Entry, Header, decode_entry, read_header
from tinkex.mesh.feeds.pruning import take
from tinkex.mesh.feeds.service import digest_of
from tinkex.mesh.feeds.snapshot import MAX_SNAPSHOT_BYTES, decode_snapshot
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.vault import PersonKey, Vault
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact

_LOG = logging.getLogger("tinkex.mesh.feeds")
_MAX_BEHIND = 20_000
"""Chains of one peer that are remembered as not had yet."""
_REFUSED_MAX_S = 60.0
_WARN_S = 60.0
"""What is refused of a chain that grows on is told once in so many seconds."""
_SNAPSHOT_REFUSED_MAX_S = 3600.0
"""Longer: one may have megabytes, and what contradicts the entries held here does so for good."""
_STORE_BYTES = 512 << 10
_STORE_ENTRIES = 512
R = TypeVar("R", bound=msgspec.Struct)
Ingest = Callable[[PeerId, ChainId, Sequence[bytes]], Awaitable[list[Entry]]]
"""Stores entries of one chain that came from a peer."""


@dataclass(slots=True)
class _Behind:
    """A chain that the peer holds more of."""

    signed: SignedHead
    time: int
    refused: int = 0
    again_at: float = 0.0
    """Monotonic seconds before which it is not tried again."""
    warned_at: float = float("-inf")
    """When it was told last why it is refused, in monotonic seconds."""


@dataclass(slots=True)
class _Looked:
    """What came of the newest snapshot that the peer holds of an author's feed."""

    time: int
    """The snapshot's, in microseconds."""
    refused: int = 0
    again_at: float = 0.0
    """Monotonic seconds before which it is not tried again."""


class Puller:
    """Pulls from one peer.

    Args:
        contact: the peer.
        peers: calls it.
        store: takes what comes.
        role: this worker's.
        clock: for what is tried again.
        config: limits.
        ingest: stores what came from the peer.
        vault: persons' keys; an auth worker's alone.
    """

    def __init__(
        self,
        contact: Contact,
        peers: Peers,
        store: FeedStore,
        role: Role,
        *,
        clock: Clock,
        config: ReplicationConfig,
        ingest: Ingest,
        vault: Vault | None,
    ) -> None:
        self.contact = contact
        self._peers = peers
        self._store = store
        self._role = role
        self._clock = clock
        self._config = config
        self._ingest = ingest
        self._vault = vault
        self._turn = asyncio.Lock()
        self._instance, self._after = b"", 0
        self._keys_instance, self._keys_after = b"", 0
        self._behind: dict[ChainId, _Behind] = {}
        self._snapshots: dict[tuple[bytes, str], _Looked] = {}

    async def round(self) -> None:
        """Get everything that this worker may have and the peer has.

        What one author's entries are refused for does not keep others' away: it is tried again in
        a later round.

        Raises:
            MeshError: the peer cannot be reached, or makes no sense.
        """
        async with self._turn:
            await self._round()

    async def _round(self) -> None:
        more = True
        while more:
            heads = await self._call(
                FeedApi.rpc_heads, HeadsRequest(self._wanted(), self._instance, self._after)
            )
            # After the heads, before the entries up to them: who holds an entry can read it.
            await self._pull_keys()
            if heads.forks != digest_of(self._store.forks()):
                await self._pull_forks()
            await self._pull_snapshots(heads.snapshots)
            for held in heads.chains:
                self._note(held)
            more = heads.more and (heads.instance, heads.arrival) != (self._instance, self._after)
            self._instance, self._after = heads.instance, heads.arrival
            await self._catch_up()

    @property
    def behind(self) -> int:
        """Chains that the peer holds more of, as far as is known."""
        return len(self._behind)

    def _wanted(self) -> tuple[str, ...]:
        policy = self._store.policy
        return tuple(
            sorted(
                feed
                for feed in policy.names()
                if policy.rule(feed).readers
                and (policy.may_read(feed, self._role) or policy.may_write(feed, self._role))
            )
        )

    def _note(self, held: HeldChain) -> None:
        header = read_header(held.header)
        chain = ChainId(PeerId(header.author), header.feed, header.epoch)
        if self._store.opened_here(chain) or self._store.forked(chain.author):
            return
        if not self.may_hold(chain):
            return
        known = self._behind.get(chain)
        if known is not None or len(self._behind) < _MAX_BEHIND:
            behind = _Behind(SignedHead(held.header, held.signature), header.time)
            if known is not None:
                behind.warned_at = known.warned_at
            self._behind[chain] = behind

    def may_hold(self, chain: ChainId) -> bool:
        """Whether this worker may have an author's entries, whatever the peer offers."""
        mine = self._store.peer_id.raw
        return self._store.policy.may_have(chain.feed, chain.author.raw, mine, self._role)

    async def _catch_up(self) -> None:
        now = self._clock.monotonic()
        for chain, behind in sorted(self._behind.items(), key=lambda item: item[1].time):
            if behind.again_at > now:
                continue
            try:
                done = await self._pull_chain(chain, behind.signed)
            except LogForkError as error:
                _LOG.warning("%s", error)
                done = True
            except (TrustError, PeerProtocolError, UnsupportedError, NotFoundError) as error:
                self._warn(chain, behind, error, now)
                done = False
            if done:
                del self._behind[chain]
            else:
                behind.refused += 1
                behind.again_at = now + min(2.0**behind.refused, _REFUSED_MAX_S)

    def _warn(self, chain: ChainId, behind: _Behind, error: TinkerError, now: float) -> None:
        if now >= behind.warned_at + _WARN_S:
            behind.warned_at = now
            _LOG.warning("refused %s from %s: %s", chain, self.contact.peer_id.short, error)

    async def _pull_chain(self, chain: ChainId, signed: SignedHead) -> bool:
        mine = await self._store.compare(signed)
        theirs = read_header(signed.header).sequence
        if mine is not None and mine.sequence >= theirs:
            return True
        try:
            await self._stream(chain, -1 if mine is None else mine.sequence, up_to=theirs)
        except PeerProtocolError:
            await self._look_for_fork(chain, mine)
            raise
        head = await self._store.head(chain)
        return head is not None and head.sequence >= theirs

    async def _stream(self, chain: ChainId, after: int, *, up_to: int) -> None:
        """Take a chain's entries in; what was stored is not asked for again after a break.

        What came since the heads were asked for is left to the next round, as are its keys.
        """
        stream = self._peers.stream(
            self.contact,
            FeedApi.rpc_entries,
            EntriesRequest(chain.author.raw, chain.feed, chain.epoch, after),
            timeout_s=self._config.stream_timeout_s,
            idle_timeout_s=self._config.call_timeout_s,
        )
        waiting: list[bytes] = []
        size = 0
        async with contextlib.aclosing(stream):
            async for batch in stream:
                for encoded in batch.entries:
                    header = read_header(decode_entry(encoded).header)
                    self.check_asked_for(chain, header)
                    number = header.sequence
                    if number <= up_to:
                        waiting.append(encoded)
                        size += len(encoded)
                # Several batches share a flush of the disk.
                if size >= _STORE_BYTES or len(waiting) >= _STORE_ENTRIES:
                    await self._ingest(self.contact.peer_id, chain, waiting)
                    waiting, size = [], 0
                if not batch.entries or number >= up_to:
                    break
        if waiting:
            await self._ingest(self.contact.peer_id, chain, waiting)

    def check_asked_for(self, chain: ChainId, header: Header) -> None:
        """Refuse entries of another chain than was asked for: nobody asked who may hold them."""
        if (header.author, header.feed, header.epoch) != (
            chain.author.raw,
            chain.feed,
            chain.epoch,
        ):
            raise PeerProtocolError(f"asked for {chain}, the peer gives entries of another chain")

    async def _look_for_fork(self, chain: ChainId, mine: Head | None) -> None:
        """Where the peer's entries do not continue ours: see what it has in our head's place."""
        if mine is not None:
            with contextlib.suppress(PeerProtocolError, TrustError):
                await self._stream(chain, mine.sequence - 1, up_to=mine.sequence)

    async def _pull_forks(self) -> None:
        reply = await self._call(FeedApi.rpc_forks, ForksRequest())
        for encoded in reply.proofs:
            await self._store.shut_out(ForkProof.decode(encoded))

    async def _pull_snapshots(self, held: Sequence[HeldSnapshot]) -> None:
        """Take the snapshots that are newer than what is held."""
        mine = self._store.snapshot_times()
        for each in held:
            author = PeerId(each.author)
            news = each.time > mine.get((author, each.feed), -1)
            may = self.may_hold(ChainId(author, each.feed, b""))
            if news and may and not self._store.forked(author):
                await self._try_snapshot(author, each)

    async def _try_snapshot(self, author: PeerId, held: HeldSnapshot) -> None:
        now = self._clock.monotonic()
        looked = self._snapshots.get((held.author, held.feed))
        if looked is None or held.time > looked.time:
            looked = self._snapshots[held.author, held.feed] = _Looked(held.time)
        if now < looked.again_at:
            return
        try:
            await self._pull_snapshot(author, held.feed)
        except (TrustError, PeerProtocolError, UnsupportedError, NotFoundError) as error:
            _LOG.warning("refused a snapshot of %r by %s: %s", held.feed, author.short, error)
            looked.refused += 1
            looked.again_at = now + min(2.0 ** min(looked.refused, 60), _SNAPSHOT_REFUSED_MAX_S)
        else:
            looked.again_at = float("inf")

    async def _pull_snapshot(self, author: PeerId, feed: str) -> None:
        parts, size = [], 0
        stream = self._peers.stream(
            self.contact,
            FeedApi.rpc_snapshot,
            SnapshotRequest(author.raw, feed),
            timeout_s=self._config.stream_timeout_s,
            idle_timeout_s=self._config.call_timeout_s,
        )
        async with contextlib.aclosing(stream):
            async for part in stream:
                size += len(part.data)
                if size > MAX_SNAPSHOT_BYTES:
                    raise PeerProtocolError("a snapshot is longer than any may be")
                parts.append(part.data)
        snapshot = decode_snapshot(b"".join(parts))
        body = snapshot.read()
        if (body.author, body.feed) != (author.raw, feed):
            raise PeerProtocolError("the peer gives another snapshot than it was asked for")
        await take(self._store, snapshot)

    async def _pull_keys(self) -> None:
        more = self._vault is not None
        while more and self._vault is not None:
            try:
                reply = await self._call(
                    FeedApi.rpc_keys, KeysRequest(self._keys_instance, self._keys_after)
                )
            except PermissionDeniedError:
                return  # the peer is no auth worker
            await self._vault.add([PersonKey(k.person, k.key_id, k.key) for k in reply.keys])
            self._keys_instance, self._keys_after = reply.instance, reply.arrival
            more = reply.more

    async def _call(self, method: Callable[..., Awaitable[R]], request: msgspec.Struct) -> R:
        return await self._peers.call(
            self.contact, method, request, timeout_s=self._config.call_timeout_s
        )
