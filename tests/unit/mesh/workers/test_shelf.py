"""A client worker's adapters: what it announces is what it has."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from mesh_rpc import World

from tinkex.errors import StorageError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.discovery import adapter_topic
from tinkex.mesh.workers.shelf import Shelf
from tinkex.testing.discovery import MemoryDiscovery

NUMBERS = 5000


def archive(name):
    """Pack what has the form of an adapter."""
    header = {"a": {"dtype": "F32", "shape": [NUMBERS], "data_offsets": [0, 4 * NUMBERS]}}
    encoded = json.dumps(header).encode()
    files = {
        "adapter_config.json": json.dumps({"name": name}).encode(),
        "adapter_model.safetensors": struct.pack("<Q", len(encoded)) + encoded + bytes(4 * NUMBERS),
        "tinkex.json": b"{}",
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:") as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


async def uploaded(name):
    yield archive(name)


@pytest.fixture
async def member():
    async with World() as world:
        key_pair = KeyPair.generate()
        peers = await world.peer(credentials=world.credentials(Role.CLIENT, key_pair))
        certificate = world.trust.peer(Role.CLIENT, key_pair).certificate
        found = MemoryDiscovery(clock=world.clock).member(peers.contact, certificate)
        yield SimpleNamespace(peers=peers, discovery=found, clock=world.clock)


async def test_adapter_that_made_room_for_another_is_announced_no_more(member, tmp_path):
    found = member.discovery
    async with AsyncExitStack() as stack:
        shelf = Shelf(member, tmp_path, max_bytes=6 * NUMBERS)
        await shelf.open(stack)
        first, second = [await shelf.add(uploaded(name)) for name in "ab"]
        assert await found.lookup(adapter_topic(first)) == ()
        assert len(await found.lookup(adapter_topic(second))) == 1
        assert await shelf.add(uploaded("a")) == first
        assert len(await found.lookup(adapter_topic(first))) == 1


async def test_upload_in_which_the_worker_was_killed_is_gone_after_the_next_start(member, tmp_path):
    async with AsyncExitStack() as stack:
        shelf = Shelf(member, tmp_path, max_bytes=6 * NUMBERS)
        cut_off = tmp_path / ".upload-x1y2"
        cut_off.mkdir()
        (cut_off / "archive").write_bytes(bytes(1000))
        await shelf.open(stack)
        assert not cut_off.exists()
        await shelf.add(uploaded("a"))
        assert not list(tmp_path.glob(".upload*"))


async def test_disk_that_refuses_an_upload_is_told(member, tmp_path):
    async with AsyncExitStack() as stack:
        root = tmp_path / "adapters"
        shelf = Shelf(member, root, max_bytes=6 * NUMBERS)
        await shelf.open(stack)
        shutil.rmtree(root)
        with pytest.raises(StorageError, match="cannot be kept: No such file"):
            await shelf.add(uploaded("a"))
