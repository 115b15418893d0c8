"""A client worker's adapters: what it announces is what it has."""

from __future__ import annotations

import io
import tarfile
from contextlib import AsyncExitStack

import pytest
from mesh_processor import Member, adapter_folder
from mesh_rpc import World

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.discovery import adapter_topic
from tinkex.mesh.workers.shelf import Shelf
from tinkex.testing.discovery import MemoryDiscovery


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Two adapters of one size, as they are uploaded."""
    made = []
    for seed in (1, 2):
        folder = adapter_folder(tmp_path_factory.mktemp("made") / "adapter", seed=seed)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:") as tar:
            for name in ("adapter_config.json", "adapter_model.safetensors", "tinkex.json"):
                tar.add(folder / name, arcname=name)
        made.append(packed.getvalue())
    return made


async def parts(archive):
    yield archive


async def test_adapter_that_made_room_for_another_is_announced_no_more(archives, tmp_path):
    async with World() as world, AsyncExitStack() as stack:
        key_pair = KeyPair.generate()
        peers = await world.peer(credentials=world.credentials(Role.CLIENT, key_pair))
        certificate = world.trust.peer(Role.CLIENT, key_pair).certificate
        found = MemoryDiscovery(clock=world.clock).member(peers.contact, certificate)
        member = Member(key_pair, peers, found, world.clock)
        shelf = Shelf(member, tmp_path, max_bytes=int(1.5 * len(archives[0])))
        await shelf.open(stack)
        first, second = [await shelf.add(parts(archive)) for archive in archives]
        assert await found.lookup(adapter_topic(first)) == ()
        assert len(await found.lookup(adapter_topic(second))) == 1
        assert await shelf.add(parts(archives[0])) == first
        assert len(await found.lookup(adapter_topic(first))) == 1
