"""A client worker's adapters: the files that its users published, for whoever holds a permit.

Owns taking files in, and announcing what there is. Whose an adapter is and what it is called, the
gateways know; here are only files, by what is in them.
"""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

from tinkex._clock import Clock
from tinkex.errors import BadRequestError, InputError, StorageError
from tinkex.mesh.blobs.manifest import LARGEST_FILES
from tinkex.mesh.blobs.service import BlobService
from tinkex.mesh.blobs.store import BlobStore
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.trust.permits import BlobPermitCheck
from tinkex.mesh.workers.base import Linked
from tinkex.mesh.workers.discovery import MAX_ADAPTERS_ANNOUNCED, MORE_ADAPTERS, adapter_topic

_UPLOAD = ".upload-"
_TAR_ROOM = 64 * 2**10
MAX_UPLOAD_BYTES = sum(LARGEST_FILES.values()) + _TAR_ROOM


class Shelf:
    """Adapters' files that this worker gives to processors.

    Args:
        member: the worker that it is in.
        root: the folder of the files.
        max_bytes: of all of them; above it the one not used for longest goes.
    """

    def __init__(self, member: Linked, root: Path, *, max_bytes: int) -> None:
        self._member = member
        self._root = root
        self._store = BlobStore(root, max_bytes=max_bytes)
        self._announced: list[str] = []
        self._turn = asyncio.Lock()
        """One adapter after the other: two that are the same would be written into one folder."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Give files from now on, and announce those that are here."""
        for cut_off in self._root.glob(f"{_UPLOAD}*"):  # where this worker was killed meanwhile
            await asyncio.to_thread(shutil.rmtree, cut_off, ignore_errors=True)
        give_files(self._store, self._member.peers, clock=self._member.clock)
        stack.push_async_callback(self._withdraw)
        for content in reversed(self._store.contents[:MAX_ADAPTERS_ANNOUNCED]):
            await self._announce(content)
        await self._tell_of_more()

    async def add(self, archive: AsyncIterator[bytes]) -> str:
        """Take an adapter in: a tar archive of its files, as it arrives. Gives its content id.

        Raises:
            BadRequestError: it is too long, or no archive of an adapter's files.
            DamagedDataError: the files are not what their names say.
            StorageError: there is no room.
        """
        try:
            with tempfile.TemporaryDirectory(prefix=_UPLOAD, dir=self._root) as temporary:
                folder = Path(temporary)
                await _receive(archive, folder / "archive")
                async with self._turn:
                    content = await self._taken(folder)
                    await self._tell(content)
        except OSError as error:
            raise StorageError(f"the adapter cannot be kept: {error.strerror}") from error
        return content

    async def _taken(self, folder: Path) -> str:
        try:
            await asyncio.to_thread(_unpack, folder / "archive", folder)
            return await asyncio.to_thread(self._store.add, folder)
        except (InputError, FileExistsError, tarfile.TarError) as error:
            raise BadRequestError(f"This is no adapter: {error}.") from error

    async def _tell(self, content: str) -> None:
        """Announce what came, and no more what made room for it."""
        for gone in [one for one in self._announced if not self._store.has(one)]:
            await self._drop(gone)
        await self._announce(content)
        await self._tell_of_more()

    async def _drop(self, content: str) -> None:
        self._announced.remove(content)
        await self._member.discovery.withdraw(adapter_topic(content))

    async def _announce(self, content: str) -> None:
        if content in self._announced:
            return
        self._announced.append(content)
        if len(self._announced) > MAX_ADAPTERS_ANNOUNCED:
            await self._drop(self._announced[0])
        await self._member.discovery.announce(adapter_topic(content), Offer(adapters=(content,)))

    async def _tell_of_more(self) -> None:
        """Be found for adapters, too, that are not announced one by one."""
        if len(self._store.contents) > len(self._announced):
            await self._member.discovery.announce(MORE_ADAPTERS, Offer())
        else:
            await self._member.discovery.withdraw(MORE_ADAPTERS)

    async def _withdraw(self) -> None:
        topics = [MORE_ADAPTERS, *(adapter_topic(content) for content in self._announced)]
        self._announced.clear()
        await asyncio.gather(*(self._member.discovery.withdraw(topic) for topic in topics))


def give_files(store: BlobStore, peers: Peers, *, clock: Clock) -> None:
    """Give a store's files from now on to whoever holds a permit for them."""
    credentials = peers.credentials
    permits = BlobPermitCheck(
        credentials.network,
        lambda: peers.credentials.roots,
        is_revoked=credentials.is_revoked,
        clock=clock,
    )
    peers.serve(BlobService(store, permits))


async def _receive(archive: AsyncIterator[bytes], path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        async for part in archive:
            size += len(part)
            if size > MAX_UPLOAD_BYTES:
                raise BadRequestError(f"An adapter has at most {MAX_UPLOAD_BYTES} bytes.")
            await asyncio.to_thread(file.write, part)


def _unpack(archive: Path, folder: Path) -> None:
    """Write out an adapter's files; whatever else is in the archive is refused."""
    with tarfile.open(archive, "r:") as tar:
        for entry in tar:
            if entry.name not in LARGEST_FILES or not entry.isreg():
                raise InputError(f"the archive has {entry.name!r}, which is none of its files")
            if entry.size > LARGEST_FILES[entry.name]:
                raise InputError(f"{entry.name} has {entry.size} bytes, which is too many")
            source = tar.extractfile(entry)
            assert source is not None, "it is a regular file"
            with (folder / entry.name).open("xb") as target:
                while part := source.read(2**20):
                    target.write(part)
