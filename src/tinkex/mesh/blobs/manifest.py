"""What an adapter is, by its content: its files' names, sizes and the hashes of their chunks.

Owns the manifest's form and every check of one. The content id is the manifest's SHA-256, so who
knows the id can tell every byte that is not the adapter's. Which files may be in it is fixed: the
weights as safetensors, and two JSON files that describe them. No path, nothing that runs.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from tinkex.errors import InputError, PeerProtocolError

CHUNK_BYTES = 256 * 1024
LARGEST_FILES = {
    "adapter_config.json": 2**20,
    "adapter_model.safetensors": 2**32,
    "tinkex.json": 2**20,
}
"""The files of an adapter, and how large each may be, in bytes."""
_HASH_BYTES = 32
_CONTENT = re.compile(r"[0-9a-f]{64}")


class FileEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file."""

    name: str
    size: int
    chunks: tuple[bytes, ...]
    """SHA-256 of each `CHUNK_BYTES` of it."""


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The files of an adapter, in the order of their names."""

    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Every chunk, as (file, chunk)."""
        return [(f, c) for f, file in enumerate(self.files) for c in range(len(file.chunks))]

    def fits(self, place: tuple[int, int], data: bytes) -> bool:
        """Whether some bytes are those of a chunk."""
        file, chunk = place
        return hashlib.sha256(data).digest() == self.files[file].chunks[chunk]


def content_id(encoded: bytes) -> str:
    """Return the id of what a manifest describes."""
    return hashlib.sha256(encoded).hexdigest()


def is_content_id(text: str) -> bool:
    """Whether a text has the form of a content id; so it is safe as a folder's name."""
    return _CONTENT.fullmatch(text) is not None


def make_manifest(folder: Path) -> bytes:
    """Describe the adapter in a folder; other files there are left out.

    Raises:
        InputError: one of its files is missing, empty, or too large.
    """
    files = []
    for name, largest in sorted(LARGEST_FILES.items()):
        path = folder / name
        try:
            size = path.stat().st_size
            if size > largest:
                raise InputError(f"{name} has {size} bytes; {largest} are allowed")
            if not size:
                raise InputError(f"{name} is empty: publish a checkpoint for sampling")
            with path.open("rb") as file:
                hashes = []
                while part := file.read(CHUNK_BYTES):
                    hashes.append(hashlib.sha256(part).digest())
        except OSError as error:
            raise InputError(
                f"{folder.name} has no readable {name}: publish a checkpoint for sampling"
            ) from error
        files.append(FileEntry(name, size, tuple(hashes)))
    return msgspec.msgpack.encode(Manifest(tuple(files)))


def read_manifest(encoded: bytes, content: str) -> Manifest:
    """Read a manifest that somebody sent.

    Raises:
        PeerProtocolError: it is not that of `content`, or of no adapter.
    """
    if content_id(encoded) != content:
        raise PeerProtocolError("the manifest is not that of the adapter")
    try:
        manifest = msgspec.msgpack.decode(encoded, type=Manifest)
    except ValueError as error:
        raise PeerProtocolError("the adapter's manifest cannot be read") from error
    if tuple(file.name for file in manifest.files) != tuple(sorted(LARGEST_FILES)):
        raise PeerProtocolError("the adapter's manifest names other files than an adapter has")
    for file in manifest.files:
        chunks = -(-file.size // CHUNK_BYTES)
        if not 0 < file.size <= LARGEST_FILES[file.name] or len(file.chunks) != chunks:
            raise PeerProtocolError(f"the adapter's manifest gives {file.name} an impossible size")
        if any(len(one) != _HASH_BYTES for one in file.chunks):
            raise PeerProtocolError("the adapter's manifest has hashes of another length")
    return manifest
