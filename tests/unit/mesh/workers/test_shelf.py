"""A client worker's adapters: what it announces is what it has."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from contextlib import AsyncExitStack
from types import SimpleNamespace

from mesh_rpc import World

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


async def test_adapter_that_made_room_for_another_is_announced_no_more(tmp_path):
    async with World() as world, AsyncExitStack() as stack:
        key_pair = KeyPair.generate()
        peers = await world.peer(credentials=world.credentials(Role.CLIENT, key_pair))
        certificate = world.trust.peer(Role.CLIENT, key_pair).certificate
        found = MemoryDiscovery(clock=world.clock).member(peers.contact, certificate)
        member = SimpleNamespace(peers=peers, discovery=found, clock=world.clock)
        shelf = Shelf(member, tmp_path, max_bytes=6 * NUMBERS)
        await shelf.open(stack)
        first, second = [await shelf.add(uploaded(name)) for name in "ab"]
        assert await found.lookup(adapter_topic(first)) == ()
        assert len(await found.lookup(adapter_topic(second))) == 1
        assert await shelf.add(uploaded("a")) == first
        assert len(await found.lookup(adapter_topic(first))) == 1
