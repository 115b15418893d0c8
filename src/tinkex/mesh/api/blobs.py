"""What a peer that has adapters' files does for others: give them away, to who may have them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec

from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import Call, Service, callable_by

MOST_CHUNKS = 16_400
"""Of one request: all that an adapter may have, as its permit may be over before a second one."""
_FETCHERS = frozenset({Role.PROCESSOR, Role.GATEWAY, Role.CLIENT})


class FetchManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask what files an adapter has."""

    content: str
    permit: bytes
    """A `trust.permits.BlobPermit` for the caller."""
    certificate: bytes
    """The role certificate of the gateway that signed it."""


class ManifestReply(msgspec.Struct, frozen=True):
    """A `blobs.manifest.Manifest`; its SHA-256 is the content id."""

    manifest: bytes


class FetchChunks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Ask for parts of an adapter's files."""

    content: str
    permit: bytes
    certificate: bytes
    chunks: Annotated[tuple[tuple[int, int], ...], msgspec.Meta(max_length=MOST_CHUNKS)]
    """Each (file, chunk), counted from 0."""


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A part of a file."""

    file: int
    chunk: int
    data: bytes


class BlobApi(Service):
    """Implemented by whoever holds adapters: processors, and the clients that published them."""

    service = "blobs"
    offered_by = frozenset({Role.CLIENT, Role.PROCESSOR})

    @callable_by(_FETCHERS)
    @abstractmethod
    async def rpc_manifest(self, request: FetchManifest, call: Call) -> ManifestReply:
        """Say what files an adapter has."""

    @callable_by(_FETCHERS)
    @abstractmethod
    def rpc_chunks(self, request: FetchChunks, call: Call) -> AsyncIterator[Chunk]:
        """Give chunks, in the order of the request."""
