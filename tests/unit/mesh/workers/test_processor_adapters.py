"""Adapters reach processors over the mesh, by content, from whoever has them and may give them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from mesh_processor import (
    Mesh,
    adapter_folder,
    backend_of,
    message_of,
    tokens,
    work_of,
)
from mesh_rpc import caught
from patience import until

from tinkex.errors import (
    EngineBusyError,
    NotFoundError,
    RateLimitError,
    StorageError,
    TrustError,
)
from tinkex.mesh.api.blobs import (
    MOST_CHUNKS,
    BlobApi,
    Chunk,
    FetchChunks,
    FetchManifest,
    ManifestReply,
)
from tinkex.mesh.blobs import manifest as blobs_manifest
from tinkex.mesh.blobs import store as blobs_store
from tinkex.mesh.blobs.manifest import CHUNK_BYTES
from tinkex.mesh.blobs.service import BlobService
from tinkex.mesh.blobs.store import BlobStore
from tinkex.mesh.dht.config import StorageLimits
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.messages import MAX_BODY_BYTES
from tinkex.mesh.trust.permits import PERMIT_S, BlobPermitCheck, make_blob_permit
from tinkex.mesh.workers.discovery import MORE_ADAPTERS
from tinkex.mesh.workers.processor import ADAPTERS, ProcessorConfig


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return adapter_folder(tmp_path_factory.mktemp("made") / "adapter", rank=32)


class AdapterMesh(Mesh):
    """A processor without adapters, and clients that have one."""

    async def owner(self, folder, files, *, change=None, topic=None):
        """Start a client that holds the adapter, and announces it."""
        store = BlobStore(folder, max_bytes=10**8)
        self.content = store.add(files)
        permits = BlobPermitCheck(
            self.trust.network,
            lambda: self.trust.roots,
            is_revoked=self.trust.is_revoked,
            clock=self.clock,
        )
        service = BlobService(store, permits)
        if change is not None:
            service = change(service)
        key_pair = KeyPair.generate()
        peers = await self.peer(Role.CLIENT, service, credentials=self.client(key_pair))
        certificate = self.trust.peer(Role.CLIENT, key_pair).certificate
        discovery = self.found.member(peers.contact, certificate)
        await discovery.announce(topic or f"adapter:{self.content}", Offer(load=-1.0))
        return service

    def client(self, key_pair):
        return self.credentials(Role.CLIENT, key_pair)

    def permit(self, **changes):
        fields = {
            "fetcher": self.contact.peer_id,
            "account": "ada",
            "content": self.content,
            "expires_at": self.clock.now() + PERMIT_S,
        }
        return make_blob_permit(self.gateway_key, **(fields | changes))

    def adapted(self, **changes):
        return work_of(
            self.gateway_key,
            self.contact.peer_id,
            message_of(),
            now=self.clock.now(),
            adapter=self.content,
            fetch=self.permit(**changes),
        )


@pytest.fixture
async def mesh(tmp_path):
    async with AdapterMesh() as world:
        yield await world.begin(tmp_path)


class Counting(BlobApi):
    """Counts what another service gives, and does with it what it is told."""

    def __init__(self, inner, change=lambda _, chunk: chunk, manifest=lambda one: one):
        self.inner = inner
        self.change = change
        self.manifest = manifest
        self.given = []

    async def rpc_manifest(self, request, call):
        return ManifestReply(self.manifest((await self.inner.rpc_manifest(request, call)).manifest))

    async def rpc_chunks(self, request, call):
        async for chunk in self.inner.rpc_chunks(request, call):
            changed = self.change(len(self.given), chunk)
            if changed is None:
                return
            self.given.append((chunk.file, chunk.chunk))
            yield changed


async def test_adapter_comes_from_an_owner_that_has_more_than_it_announces(mesh, tmp_path, files):
    other = adapter_folder(tmp_path / "other", seed=2)
    await mesh.owner(tmp_path / "stranger", other, topic=MORE_ADAPTERS)
    plain = tokens(await mesh.ask(mesh.work()))
    await mesh.owner(tmp_path / "owner", files, topic=MORE_ADAPTERS)
    assert tokens(await mesh.ask(mesh.adapted())) != plain


def flipped(_, chunk):
    return Chunk(chunk.file, chunk.chunk, bytes([chunk.data[0] ^ 1]) + chunk.data[1:])


async def test_adapter_reaches_a_processor_with_an_empty_folder_and_runs_there(
    mesh, tmp_path, files
):
    plain = tokens(await mesh.ask(mesh.work()))
    owner = await mesh.owner(tmp_path / "owner", files, change=Counting)
    adapted = tokens(await mesh.ask(mesh.adapted()))
    assert adapted != plain
    given = len(owner.given)
    assert tokens(await mesh.ask(mesh.adapted())) == adapted
    assert len(owner.given) == given == len(set(owner.given)) > 3
    assert (await mesh.describe()).adapters == (mesh.content,)
    # From now on others find it here as well.
    mesh.clock.advance(1.1)
    looker = mesh.found.member(mesh.gateway.contact, mesh.trust.peer(Role.GATEWAY).certificate)
    await mesh.worker._announce()
    found = await looker.lookup(f"adapter:{mesh.content}")
    assert mesh.contact in [record.contact for record in found]


class Asked(Counting):
    """Counts the requests, too."""

    requests = 0

    async def rpc_chunks(self, request, call):
        self.requests += 1
        async for chunk in super().rpc_chunks(request, call):
            yield chunk


async def test_large_adapter_is_asked_for_once_as_its_permit_lasts_no_longer(
    mesh, tmp_path, files, monkeypatch
):
    for module in (blobs_manifest, blobs_store):
        monkeypatch.setattr(module, "CHUNK_BYTES", 90)
    owner = await mesh.owner(tmp_path / "owner", files, change=Asked)
    await mesh.ask(mesh.adapted())
    assert len(owner.given) > 4096, "as many chunks as a gibibyte has"
    assert owner.requests == 1


def test_every_adapter_fits_in_one_request():
    most = blobs_manifest.Manifest(
        tuple(
            blobs_manifest.FileEntry(name, size, (b"",) * -(-size // CHUNK_BYTES))
            for name, size in blobs_manifest.LARGEST_FILES.items()
        )
    )
    assert len(most.places) <= MOST_CHUNKS
    request = FetchChunks(
        content="0" * 64, permit=b"p" * 512, certificate=b"c" * 8192, chunks=tuple(most.places)
    )
    assert len(msgspec.msgpack.encode(request)) < MAX_BODY_BYTES


async def test_processor_with_many_adapters_announces_no_more_than_nodes_hold_of_one_peer(tmp_path):
    adapters = [f"{number:064x}" for number in range(StorageLimits().per_publisher + 10)]
    for content in adapters:
        (tmp_path / ADAPTERS / content).mkdir(parents=True)
    async with AdapterMesh() as world:
        mesh = await world.begin(tmp_path)
        looker = mesh.found.member(mesh.gateway.contact, mesh.trust.peer(Role.GATEWAY).certificate)
        topics = ["processor", "model:tiny", *(f"adapter:{content}" for content in adapters)]
        announced = [topic for topic in topics if await looker.lookup(topic)]
        assert announced[:2] == topics[:2]
        assert 2 < len(announced) <= StorageLimits().per_publisher


@pytest.mark.parametrize(
    "change",
    [
        lambda inner: Counting(inner, flipped),
        lambda inner: Counting(inner, lambda n, chunk: chunk if n < 1 else flipped(n, chunk)),
        lambda inner: Counting(inner, lambda n, chunk: chunk if n < 2 else None),
        lambda inner: Counting(inner, lambda _, chunk: Chunk(0, 7, chunk.data)),
        lambda inner: Counting(inner, manifest=lambda one: one[:-1] + b"x"),
    ],
    ids=["a flipped byte", "a later one", "less than was asked for", "others", "a false manifest"],
)
async def test_peer_that_gives_what_is_not_the_adapter_is_left_for_another(
    mesh, tmp_path, files, change
):
    liar = await mesh.owner(tmp_path / "liar", files, change=change)
    assert isinstance(await caught(mesh.ask(mesh.adapted())), NotFoundError)
    good = len(liar.given) if liar.change(0, Chunk(0, 0, b"ab")) == Chunk(0, 0, b"ab") else 0
    honest = await mesh.owner(tmp_path / "honest", files, change=Counting)
    assert tokens(await mesh.ask(mesh.adapted()))
    assert len(honest.given) < CHUNK_BYTES
    if good > 1:  # what was right of it is not asked for again
        assert liar.given[0] not in honest.given


async def test_peer_whose_copy_was_damaged_is_left_for_another(mesh, tmp_path, files):
    await mesh.owner(tmp_path / "damaged", files)
    weights = tmp_path / "damaged" / mesh.content / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert isinstance(await caught(mesh.ask(mesh.adapted())), NotFoundError)
    await mesh.owner(tmp_path / "whole", files)
    assert tokens(await mesh.ask(mesh.adapted()))


@pytest.mark.parametrize("name", ["manifest", "adapter_model.safetensors"])
async def test_processor_whose_disk_is_full_says_so_and_blames_no_peer(tmp_path, files, name):
    async with AdapterMesh() as mesh:
        await mesh.begin(tmp_path / "p")
        await mesh.owner(tmp_path / "owner", files)
        coming = tmp_path / "p" / ADAPTERS / ".coming" / mesh.content
        coming.mkdir()
        (coming / name).symlink_to("/dev/full")
        error = await caught(mesh.ask(mesh.adapted()))
        assert isinstance(error, StorageError)
        assert "No space left" in str(error)
        (coming / name).unlink()
        assert tokens(await mesh.ask(mesh.adapted()))


async def test_adapter_that_nobody_has_is_not_found(mesh, files, tmp_path):
    await mesh.owner(tmp_path / "owner", files)
    mesh.content = "ab" * 32
    error = await caught(mesh.ask(mesh.adapted()))
    assert isinstance(error, NotFoundError)
    assert "online" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "cd" * 32},
        {"fetcher": KeyPair(bytes(32)).peer_id},
        {"expires_at": 0.0},
    ],
    ids=["for another adapter", "for another peer", "expired"],
)
async def test_files_are_given_for_a_permit_that_fits_alone(mesh, files, tmp_path, changes):
    await mesh.owner(tmp_path / "owner", files)
    assert isinstance(await caught(mesh.ask(mesh.adapted(**changes))), NotFoundError)
    assert (await mesh.describe()).adapters == ()


async def test_another_client_cannot_fetch_a_private_adapter(mesh, files, tmp_path):
    await mesh.owner(tmp_path / "owner", files)
    owner = mesh.peers[-1].contact
    thief_key = KeyPair.generate()
    thief = await mesh.peer(credentials=mesh.client(thief_key))
    stolen = mesh.permit()  # the processor's
    own = make_blob_permit(
        thief_key,
        fetcher=thief_key.peer_id,
        account="eve",
        content=mesh.content,
        expires_at=mesh.clock.now() + PERMIT_S,
    )
    for permit, certificate in (
        (stolen, mesh.gateway.credentials.certificate),
        (own, thief.credentials.certificate),
        (own, mesh.gateway.credentials.certificate),
        (b"", b""),
    ):
        request = FetchManifest(content=mesh.content, permit=permit, certificate=certificate)
        error = await caught(thief.call(owner, BlobApi.rpc_manifest, request, timeout_s=60))
        assert isinstance(error, TrustError)


async def test_adapter_that_went_while_its_request_waited_is_loaded_again(tmp_path, files):
    async with AdapterMesh() as mesh:
        await mesh.begin(tmp_path / "p", backend=backend_of(max_adapters=1), slots=1)
        other = adapter_folder(tmp_path / "other", seed=7)
        contents = []
        for name, made in (("one", files), ("two", other)):
            await mesh.owner(tmp_path / name, made)
            contents.append(mesh.content)
        asking = []
        async with mesh.worker._slots.take("somebody", 1):
            for waiting, content in enumerate(contents, 1):
                mesh.content = content
                asking.append(asyncio.ensure_future(mesh.ask(mesh.adapted())))
                await until(lambda: mesh.worker.service.description.waiting == waiting)  # noqa: B023
            assert mesh.backend.adapters == (contents[1],)
        ends = [tokens(await asyncio.wait_for(one, 20)) for one in asking]
        assert all(len(end) == 12 for end in ends)
        assert ends[0] != ends[1]


def room_for_one(mesh, files):
    """Let a processor's disk have room for one adapter: the engine has room for many."""
    mesh.worker._store._max_bytes = 3 * sum(file.stat().st_size for file in files.iterdir()) // 2


async def test_files_of_adapters_that_wait_in_the_engine_alone_make_room_for_others(
    tmp_path, files
):
    async with AdapterMesh() as mesh:
        await mesh.begin(tmp_path / "p")
        room_for_one(mesh, files)
        ends = {}
        for name, seed in (("one", 1), ("two", 7)):
            made = adapter_folder(tmp_path / f"{name}-files", seed=seed, rank=32)
            await mesh.owner(tmp_path / name, made)
            ends[mesh.content] = tokens(await mesh.ask(mesh.adapted()))
        assert set(mesh.backend.adapters) == set(ends)
        for mesh.content, before in ends.items():
            assert tokens(await mesh.ask(mesh.adapted())) == before


async def test_adapter_that_went_from_the_disk_too_while_its_request_waited_comes_again(
    tmp_path, files
):
    async with AdapterMesh() as mesh:
        await mesh.begin(tmp_path / "p", backend=backend_of(max_adapters=1), slots=1)
        room_for_one(mesh, files)
        asking = []
        async with mesh.worker._slots.take("somebody", 1):
            for waiting, seed in enumerate((1, 7), 1):
                made = adapter_folder(tmp_path / f"files-{seed}", seed=seed, rank=32)
                await mesh.owner(tmp_path / f"owner-{seed}", made)
                asking.append(asyncio.ensure_future(mesh.ask(mesh.adapted())))
                await until(lambda: mesh.worker.service.description.waiting == waiting)  # noqa: B023
            assert mesh.worker._store.contents == (mesh.content,)
        ends = [tokens(await asyncio.wait_for(one, 20)) for one in asking]
        assert all(len(end) == 12 for end in ends)


class OnTheirWay:
    """Files that do not come until a test says so."""

    def __init__(self, folder):
        self._folder = folder
        self.asked = asyncio.Event()
        self.came = asyncio.Event()

    async def folder(self, content, *, permit, certificate):
        self.asked.set()
        await self.came.wait()
        return self._folder


async def test_adapter_that_takes_long_to_come_is_no_reason_to_take_its_processor_for_lost(
    mesh, files
):
    mesh.content = "ab" * 32
    mesh.worker.service._files = coming = OnTheirWay(files)
    asking = asyncio.ensure_future(mesh.ask(mesh.adapted()))
    await coming.asked.wait()
    mesh.clock.advance(ProcessorConfig().longest_wait_s)
    error = await caught(asking)
    assert isinstance(error, EngineBusyError)
    assert error.retry_after_ms == 5000
    coming.came.set()
    assert len(tokens(await mesh.ask(mesh.adapted()))) == 12


async def test_files_and_slots_are_waited_for_no_longer_together_than_each_alone(mesh, files):
    """A gateway that heard nothing for a minute would take the processor for lost."""
    mesh.content = "ab" * 32
    mesh.worker.service._files = coming = OnTheirWay(files)
    longest_s = ProcessorConfig().longest_wait_s
    async with mesh.worker._slots.take("somebody", mesh.worker._slots.total):
        asking = asyncio.ensure_future(mesh.ask(mesh.adapted()))
        await coming.asked.wait()
        mesh.clock.advance(longest_s - 5)
        coming.came.set()
        await until(lambda: mesh.worker.service.description.waiting == 1)
        mesh.clock.advance(5)
        error = await caught(asyncio.wait_for(asking, 20))
    assert isinstance(error, RateLimitError)
    assert "nothing was free for 5 s" in str(error)
