"""Getting an adapter's files: from this machine, or from any peer that has them.

Owns trying sources in turn, and that each adapter is fetched once however many wait for it. Every
chunk is checked as it comes: who sends a wrong byte is left, and the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TypeVar

from tinkex.errors import (
    DamagedDataError,
    NotFoundError,
    PeerProtocolError,
    StorageError,
    TinkerError,
)
from tinkex.mesh.api.blobs import BlobApi, FetchChunks, FetchManifest
from tinkex.mesh.blobs.manifest import is_content_id
from tinkex.mesh.blobs.store import BlobStore, Coming
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.transport.base import Contact

T = TypeVar("T")

_LOG = logging.getLogger("tinkex.mesh.blobs")
MANIFEST_TIMEOUT_S = 5.0
CHUNK_TIMEOUT_S = 0.15
"""For each of those that are asked for at once, but at least for `LEAST_CHUNKS`."""
LEAST_CHUNKS = 4096
IDLE_TIMEOUT_S = 10.0


class AdapterFetcher:
    """Has adapters' files, or gets them.

    Args:
        store: of this machine.
        peers: calls others.
        sources: gives who has an adapter, likeliest first.
        in_use: gives the adapters whose files must not go for another.
        tasks: own what is being fetched.
    """

    def __init__(
        self,
        store: BlobStore,
        peers: Peers,
        sources: Callable[[str], Awaitable[Sequence[Contact]]],
        *,
        in_use: Callable[[], Collection[str]],
        tasks: Tasks,
    ) -> None:
        self._store = store
        self._peers = peers
        self._sources = sources
        self._in_use = in_use
        self._tasks = tasks
        self._fetching: dict[str, asyncio.Future[Path]] = {}

    async def folder(self, content: str, *, permit: bytes, certificate: bytes) -> Path:
        """Return the folder with an adapter's files, fetched and verified.

        Args:
            content: its id.
            permit: a `BlobPermit` for this peer.
            certificate: of the gateway that signed it.

        Raises:
            NotFoundError: nobody who can be reached has it, or gives it.
            DamagedDataError: it is no adapter.
            StorageError: there is no room for it.
        """
        if not is_content_id(content):
            raise NotFoundError(f"{content[:70]!r} is no adapter's content id")
        if self._store.has(content):
            return await asyncio.to_thread(self._store.folder, content)
        fetching = self._fetching.get(content)
        if fetching is None:
            fetching = asyncio.get_running_loop().create_future()
            self._fetching[content] = fetching
            self._tasks.spawn(
                self._fetch(content, permit, certificate, fetching), name="fetch an adapter"
            )
        return await asyncio.shield(fetching)

    async def _fetch(
        self, content: str, permit: bytes, certificate: bytes, fetching: asyncio.Future[Path]
    ) -> None:
        try:
            found = await self._from_anybody(content, permit, certificate)
        except TinkerError as error:
            fetching.set_exception(error)
            fetching.exception()  # whoever waited may be gone
        except BaseException:
            fetching.cancel()
            raise
        else:
            fetching.set_result(found)
        finally:
            del self._fetching[content]

    async def _from_anybody(self, content: str, permit: bytes, certificate: bytes) -> Path:
        last: TinkerError | None = None
        for source in await self._sources(content):
            if source.peer_id == self._peers.peer_id:
                continue
            try:
                return await self._from(source, content, permit, certificate)
            except _HereError as error:
                raise error.reason from error
            except TinkerError as error:
                last = error
                _LOG.warning(
                    "%s did not give adapter %s: %s",
                    source.peer_id.short,
                    content[:16],
                    type(error).__name__,
                )
        raise NotFoundError(
            f"No peer that can be reached gives the files of adapter {content[:16]}: its owner, or "
            "somebody who has used it, must be online."
        ) from last

    async def _from(self, source: Contact, content: str, permit: bytes, certificate: bytes) -> Path:
        request = FetchManifest(content=content, permit=permit, certificate=certificate)
        reply = await self._peers.call(
            source, BlobApi.rpc_manifest, request, timeout_s=MANIFEST_TIMEOUT_S
        )
        keep = set(self._in_use())
        coming = await _here(lambda: self._store.begin(content, reply.manifest, keep=keep))
        with coming:
            missing = await _here(coming.missing)
            if missing:
                wanted = FetchChunks(
                    content=content, permit=permit, certificate=certificate, chunks=tuple(missing)
                )
                await self._chunks(source, coming, wanted)
            return await _here(coming.finish)

    async def _chunks(self, source: Contact, coming: Coming, request: FetchChunks) -> None:
        wanted = iter(request.chunks)
        stream = self._peers.stream(
            source,
            BlobApi.rpc_chunks,
            request,
            timeout_s=CHUNK_TIMEOUT_S * max(len(request.chunks), LEAST_CHUNKS),
            idle_timeout_s=IDLE_TIMEOUT_S,
        )
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                place = chunk.file, chunk.chunk
                write = partial(coming.write, place, chunk.data)
                if place != next(wanted, None) or not await _here(write):
                    raise PeerProtocolError("a peer sent what is no part of the adapter")
        if next(wanted, None) is not None:
            raise PeerProtocolError("a peer gave less of an adapter than it was asked for")


class _HereError(Exception):
    """What is wrong is wrong on this machine, or with the adapter: no other peer can help."""

    def __init__(self, reason: TinkerError) -> None:
        super().__init__(str(reason))
        self.reason = reason


async def _here(work: Callable[[], T]) -> T:
    """Take in what came; a peer's own errors of the same classes say nothing of other peers."""
    try:
        return await asyncio.to_thread(work)
    except (DamagedDataError, StorageError) as error:
        raise _HereError(error) from error
