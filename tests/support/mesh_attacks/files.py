"""Attacks on adapters' files on their way: other bytes, other files than an adapter has."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

import msgspec
from mesh_attacks.registry import Defence, Suite, nothing, refused

from tinkex.errors import DamagedDataError, PeerProtocolError
from tinkex.mesh.blobs.manifest import FileEntry, Manifest, content_id
from tinkex.mesh.blobs.store import BlobStore, Coming

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    store: type = BlobStore
    coming: type = Coming


def adapter(folder):
    """The files of an adapter of one number."""
    folder.mkdir()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    for name in ("adapter_config.json", "tinkex.json"):
        (folder / name).write_text("{}")
    return folder


def held(folder):
    """A store that has it, and its content id."""
    store = BlobStore(folder / "held", max_bytes=10**6)
    return store, store.add(adapter(folder / "made"))


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def copy_with_a_flipped_byte(folder, classes):
    store, content = held(folder)
    encoded = store.manifest(content)
    arriving = folder / "arriving"
    arriving.mkdir()
    manifest = msgspec.msgpack.decode(encoded, type=Manifest)
    coming = classes.coming(arriving, folder / "target", manifest)
    return not any(
        coming.write(place, flipped(store.chunk(content, place))) for place in coming.missing()
    )


def file_that_was_damaged_where_it_lies(folder, classes):
    store, content = held(folder)
    path = folder / "held" / content / WEIGHTS
    path.write_bytes(flipped(path.read_bytes()))
    places = msgspec.msgpack.decode(store.manifest(content), type=Manifest).places
    store = classes.store(folder / "held", max_bytes=10**6)
    return any(refused(DamagedDataError, store.chunk, content, place) for place in places)


def begins_with(folder, classes, content, encoded):
    store = classes.store(folder / "empty", max_bytes=10**6)
    return refused(PeerProtocolError, store.begin, content, encoded)


def manifest_of_something_else(folder, classes):
    store, content = held(folder)
    return begins_with(folder, classes, content, flipped(store.manifest(content)))


def program_among_the_files(folder, classes):
    store, content = held(folder)
    files = msgspec.msgpack.decode(store.manifest(content), type=Manifest).files
    pickle = FileEntry("adapter_model.bin", files[-1].size, files[-1].chunks)
    encoded = msgspec.msgpack.encode(Manifest((*files[:-1], pickle)))
    return begins_with(folder, classes, content_id(encoded), encoded)


def given_unread(self, content, place):
    files = msgspec.msgpack.decode(self.manifest(content), type=Manifest).files
    return (self.folder(content) / files[place[0]].name).read_bytes()


SUITE = Suite(
    "files",
    Classes(),
    (
        Defence("coming", "write", lambda *_: True, (copy_with_a_flipped_byte,)),
        Defence("store", "chunk", given_unread, (file_that_was_damaged_where_it_lies,)),
        Defence(
            "store",
            "begin",
            nothing,
            (manifest_of_something_else, program_among_the_files),
        ),
    ),
)
