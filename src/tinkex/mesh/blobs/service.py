"""Gives adapters' files to peers that hold a permit for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tinkex.mesh.api.blobs import BlobApi, Chunk, FetchChunks, FetchManifest, ManifestReply
from tinkex.mesh.blobs.store import BlobStore
from tinkex.mesh.rpc.service import Call
from tinkex.mesh.trust.permits import BlobPermitCheck


class BlobService(BlobApi):
    """Answers whoever fetches.

    Args:
        store: has the files.
        permits: what is demanded.
    """

    def __init__(self, store: BlobStore, permits: BlobPermitCheck) -> None:
        self._store = store
        self._permits = permits

    async def rpc_manifest(self, request: FetchManifest, call: Call) -> ManifestReply:
        """Say what files an adapter has."""
        self._check(request, call)
        return ManifestReply(await asyncio.to_thread(self._store.manifest, request.content))

    async def rpc_chunks(self, request: FetchChunks, call: Call) -> AsyncIterator[Chunk]:
        """Give chunks, in the order of the request."""
        self._check(request, call)
        for place in request.chunks:
            data = await asyncio.to_thread(self._store.chunk, request.content, place)
            yield Chunk(*place, data)

    def _check(self, request: FetchManifest | FetchChunks, call: Call) -> None:
        self._permits.check(
            request.permit,
            certificate=request.certificate,
            caller=call.peer,
            content=request.content,
        )
