"""What other peers may ask of this worker's feeds, and push to it.

Owns the answers, and who may have what. Asking others is `replication`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from tinkex._clock import Clock
from tinkex.errors import (
    InputError,
    LogForkError,
    MeshError,
    NotFoundError,
    PeerProtocolError,
    PermissionDeniedError,
    UnsupportedError,
)
from tinkex.mesh.api.feeds import (
    MAX_HEADS,
    MAX_KEYS,
    Entries,
    EntriesRequest,
    FeedApi,
    Forks,
    ForksRequest,
    Heads,
    HeadsRequest,
    HeldChain,
    HeldSnapshot,
    Key,
    Keys,
    KeysRequest,
    Push,
    Pushed,
    SnapshotPart,
    SnapshotRequest,
)
from tinkex.mesh.feeds.admission import PushAdmission
from tinkex.mesh.feeds.chain import ForkProof
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.entry import EPOCH_BYTES, ChainId, Entry, Header, decode_entry, read_header
from tinkex.mesh.feeds.policy import FeedPolicy
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.vault import PersonKey, Vault
from tinkex.mesh.identity import PEER_ID_BYTES, PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call

_PART_BYTES = 256 << 10
_RUN = 256


class FeedService(FeedApi):
    """Answers for one store.

    Args:
        store: an open one.
        role: this worker's own.
        clock: for rates.
        config: limits.
        asked: told of a peer that wants to follow, and of the feeds that it wants.
        behind: told of a peer that holds more than it pushed.
        ingest: stores entries of one chain that came from a peer.
        vault: persons' keys; an auth worker's alone.
    """

    def __init__(
        self,
        store: FeedStore,
        role: Role,
        *,
        clock: Clock,
        config: ReplicationConfig,
        asked: Callable[[Call, Sequence[str]], None],
        behind: Callable[[PeerId], None],
        ingest: Callable[[PeerId, ChainId, Sequence[bytes]], Awaitable[list[Entry]]],
        vault: Vault | None = None,
    ) -> None:
        self.admission = PushAdmission(config)
        self._store = store
        self._role = role
        self._clock = clock
        self._config = config
        self._asked = asked
        self._behind = behind
        self._ingest = ingest
        self._vault = vault

    @property
    def _policy(self) -> FeedPolicy:
        return self._store.policy

    async def rpc_heads(self, request: HeadsRequest, call: Call) -> Heads:
        """Say what is held; the caller is told of what comes for a while."""
        self._asked(call, request.feeds)
        after = request.after if request.instance == self._store.instance else 0
        grown = await self._store.grown(after, MAX_HEADS)
        chains = [
            HeldChain(signed.header, signed.signature, held.base)
            for _, held, signed in grown
            if held.chain.feed in request.feeds and self.may_have(held.chain, call)
        ]
        return Heads(
            self._store.instance,
            grown[-1][0] if grown else after,
            len(grown) == MAX_HEADS,
            tuple(chains),
            self._snapshots(request.feeds, call),
            digest_of(self._store.forks()),
        )

    async def rpc_entries(self, request: EntriesRequest, call: Call) -> AsyncIterator[Entries]:
        """Give a chain's entries, as long as there are any."""
        chain = self._chain(request)
        self._check_may_have(chain, call)
        after = request.after
        while run := await self._store.run(chain, after=after, limit=_RUN):
            for batch in batches([entry.encoded() for entry in run], self._config.batch_bytes):
                yield Entries(batch)
            after = run[-1].sequence

    async def rpc_snapshot(
        self, request: SnapshotRequest, call: Call
    ) -> AsyncIterator[SnapshotPart]:
        """Give a snapshot in parts."""
        chain = self._chain(EntriesRequest(request.author, request.feed, bytes(EPOCH_BYTES), -1))
        self._check_may_have(chain, call)
        snapshot = await self._store.snapshot(request.feed, chain.author)
        if snapshot is None:
            raise NotFoundError(f"there is no snapshot of {request.feed!r} by that author here")
        encoded = snapshot.encoded()
        for start in range(0, len(encoded), _PART_BYTES):
            yield SnapshotPart(encoded[start : start + _PART_BYTES])

    async def rpc_forks(self, request: ForksRequest, call: Call) -> Forks:  # noqa: ARG002 - RPC
        """Give the proofs of forks: anybody may have them."""
        return Forks(tuple(proof.encoded() for proof in self._store.forks()[:1000]))

    async def rpc_push(self, request: Push, call: Call) -> Pushed:
        """Take in what a peer says is new.

        Raises:
            RateLimitError: it pushes too much, or too much that does not check.
            PermissionDeniedError: entries that it may not have, or that this worker may not.
            TrustError, PeerProtocolError, LogForkError: what was pushed does not check.
        """
        size = sum(map(len, request.entries))
        self.admission.admit(
            call.peer,
            len(request.entries) + len(request.forks) + len(request.keys),
            size,
            self._clock.monotonic(),
        )
        try:
            return Pushed(await self._take(request, call))
        except LogForkError:
            raise  # the author's fault, not the pusher's
        except (MeshError, InputError, PermissionDeniedError, UnsupportedError):
            self.admission.strike(call.peer, self._clock.monotonic())
            raise

    async def rpc_keys(self, request: KeysRequest, call: Call) -> Keys:
        """Give persons' keys, to auth workers alone."""
        self.check_may_have_keys(call)
        if self._vault is None:
            raise PermissionDeniedError("a worker that is no auth worker has no persons' keys")
        after = request.after if request.instance == self._store.instance else 0
        keys, arrival = await self._vault.after(after, MAX_KEYS)
        given = tuple(Key(key.person, key.key_id, key.key) for key in keys)
        return Keys(self._store.instance, arrival, arrival > after, given)

    def check_may_have_keys(self, call: Call) -> None:
        """Refuse persons' keys to whoever is no auth worker."""
        if call.role is not Role.AUTH:
            raise PermissionDeniedError("persons' keys are for auth workers, and theirs alone")

    async def _take(self, request: Push, call: Call) -> int:
        for encoded in request.forks:
            await self._store.shut_out(ForkProof.decode(encoded))
        if request.keys:
            self.check_may_have_keys(call)
            if self._vault is None:
                raise PermissionDeniedError("a worker that is no auth worker has no persons' keys")
            await self._vault.add([PersonKey(k.person, k.key_id, k.key) for k in request.keys])
        runs: dict[ChainId, tuple[int, list[bytes]]] = {}
        for encoded in request.entries:
            header = read_header(decode_entry(encoded).header)
            self.check_pushed(header, call)
            chain = ChainId(PeerId(header.author), header.feed, header.epoch)
            runs.setdefault(chain, (header.sequence, []))[1].append(encoded)
        stored, gap = 0, request.ask
        for chain, (first, run) in runs.items():
            head = await self._store.head(chain)
            if first > (-1 if head is None else head.sequence) + 1:
                gap = True  # nothing is wrong: what lies between was not pushed
                continue
            stored += len(await self._ingest(call.peer, chain, run))
        if gap:
            self._behind(call.peer)
        return stored

    def check_pushed(self, header: Header, call: Call) -> None:
        """Refuse entries that the pusher, or this worker, may not hold."""
        mine = self._store.peer_id.raw
        pushers = self._policy.may_have(header.feed, header.author, call.peer.raw, call.role)
        if not pushers or not self._policy.may_have(header.feed, header.author, mine, self._role):
            raise PermissionDeniedError(
                f"entries of {header.feed!r} do not go from a {call.role} to a {self._role}"
            )

    def may_have(self, chain: ChainId, call: Call) -> bool:
        """Whether the caller may be given a chain."""
        return self._policy.may_have(chain.feed, chain.author.raw, call.peer.raw, call.role)

    def _check_may_have(self, chain: ChainId, call: Call) -> None:
        if not self.may_have(chain, call):
            raise PermissionDeniedError(f"a {call.role} may not have {chain.feed!r} of others")
        self._store.check_not_forked(chain.author)

    def _chain(self, request: EntriesRequest) -> ChainId:
        if len(request.author) != PEER_ID_BYTES or len(request.epoch) != EPOCH_BYTES:
            raise PeerProtocolError("an author or epoch has not the length that it must have")
        self._policy.rule(request.feed)
        return ChainId(PeerId(request.author), request.feed, request.epoch)

    def _snapshots(self, feeds: Sequence[str], call: Call) -> tuple[HeldSnapshot, ...]:
        found = [
            HeldSnapshot(author.raw, feed, time)
            for (author, feed), time in self._store.snapshot_times().items()
            if feed in feeds and self._policy.may_have(feed, author.raw, call.peer.raw, call.role)
        ]
        return tuple(found[:MAX_HEADS])


def digest_of(proofs: Sequence[ForkProof]) -> bytes:
    """A digest of proofs that does not depend on their order."""
    return hashlib.sha256(b"".join(sorted(proof.encoded() for proof in proofs))).digest()


def batches(encoded: Sequence[bytes], limit: int) -> list[tuple[bytes, ...]]:
    """Divide entries so that no batch has more bytes than `limit`, or than its one entry."""
    made: list[tuple[bytes, ...]] = []
    batch: list[bytes] = []
    size = 0
    for each in encoded:
        if batch and size + len(each) > limit:
            made.append(tuple(batch))
            batch, size = [], 0
        batch.append(each)
        size += len(each)
    return [*made, tuple(batch)] if batch else made
