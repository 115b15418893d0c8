"""A client worker's adapters: what it announces is what it has."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import struct
import tarfile
import threading
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from mesh_rpc import World

from tinkex.errors import StorageError
from tinkex.mesh.blobs.store import Coming
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.discovery import MORE_ADAPTERS, adapter_topic
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
async def members():
    """Makes client workers of one network."""
    async with World() as world:
        discovery = MemoryDiscovery(clock=world.clock)

        async def make():
            key_pair = KeyPair.generate()
            peers = await world.peer(credentials=world.credentials(Role.CLIENT, key_pair))
            certificate = world.trust.peer(Role.CLIENT, key_pair).certificate
            found = discovery.member(peers.contact, certificate)
            return SimpleNamespace(peers=peers, discovery=found, clock=world.clock)

        yield make


@pytest.fixture
async def member(members):
    return await members()


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


async def test_adapters_beyond_those_announced_one_by_one_can_be_found(
    member, members, tmp_path, monkeypatch
):
    monkeypatch.setattr("tinkex.mesh.workers.shelf.MAX_ADAPTERS_ANNOUNCED", 2)
    found, room = member.discovery, 30 * NUMBERS
    async with AsyncExitStack() as stack:
        shelf = Shelf(member, tmp_path, max_bytes=room)
        await shelf.open(stack)
        added = [await shelf.add(uploaded(name)) for name in "ab"]
        assert await found.lookup(MORE_ADAPTERS) == ()
        added.append(await shelf.add(uploaded("c")))
        announced = [len(await found.lookup(adapter_topic(one))) for one in added]
        assert announced == [0, 1, 1]
        assert len(await found.lookup(MORE_ADAPTERS)) == 1
    assert await found.lookup(MORE_ADAPTERS) == ()
    async with AsyncExitStack() as stack:
        await Shelf(await members(), tmp_path, max_bytes=room).open(stack)
        assert len(await found.lookup(MORE_ADAPTERS)) == 1


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


async def test_one_adapter_that_is_published_twice_at_once_is_taken_once(
    member, tmp_path, monkeypatch
):
    """Each begins when the other has the half of it."""
    written, half = Coming.write, threading.Barrier(2)

    def write(coming, place, data):
        with contextlib.suppress(threading.BrokenBarrierError):
            half.wait(timeout=0.2)
        return written(coming, place, data)

    monkeypatch.setattr(Coming, "write", write)
    async with AsyncExitStack() as stack:
        shelf = Shelf(member, tmp_path, max_bytes=6 * NUMBERS)
        await shelf.open(stack)
        first, second = await asyncio.gather(shelf.add(uploaded("a")), shelf.add(uploaded("a")))
        assert first == second
        assert len(await member.discovery.lookup(adapter_topic(first))) == 1
        assert not list(tmp_path.glob(".upload*"))
