"""Adapters' files: what may be one, whole or not at all, checked when read, bounded in size."""

from __future__ import annotations

import json
import os
import struct

import msgspec
import pytest

from tinkex.errors import (
    DamagedDataError,
    InputError,
    NotFoundError,
    PeerProtocolError,
    StorageError,
)
from tinkex.mesh.blobs.contents import check_contents
from tinkex.mesh.blobs.manifest import (
    CHUNK_BYTES,
    LARGEST_FILES,
    FileEntry,
    Manifest,
    content_id,
    make_manifest,
    read_manifest,
)
from tinkex.mesh.blobs.store import BlobStore

WEIGHTS = "adapter_model.safetensors"


def safetensors(numbers, header=None):
    data = bytes(4 * numbers)
    header = header or {"a": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, len(data)]}}
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def adapter(folder, *, numbers=100, name="x", **files):
    """Write something that has the form of an adapter."""
    folder.mkdir(exist_ok=True)
    content = {
        "adapter_config.json": json.dumps({"name": name}).encode(),
        "tinkex.json": b"{}",
        WEIGHTS: safetensors(numbers),
        **files,
    }
    for file, data in content.items():
        (folder / file).write_bytes(data)
    return folder


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store", max_bytes=10**7)


def test_adapter_is_found_by_its_content_alone(store, tmp_path):
    folder = adapter(tmp_path / "a", numbers=CHUNK_BYTES // 4 + 9, **{"optimizer.bin": b"more"})
    content = store.add(folder)
    assert content == content_id(make_manifest(folder)) == store.add(folder)
    assert sorted(path.name for path in store.folder(content).iterdir()) == [
        "adapter_config.json",
        WEIGHTS,
        "manifest",
        "tinkex.json",
    ]
    assert len(store.chunk(content, (1, 0))) == CHUNK_BYTES
    assert store.add(adapter(tmp_path / "a", name="y")) != content
    for place in ((0, 1), (3, 0), (-1, 0), (1, -1)):
        with pytest.raises(InputError, match="no chunk"):
            store.chunk(content, place)


def test_adapter_survives_a_restart_and_what_came_of_one_too(store, tmp_path):
    folder = adapter(tmp_path / "a", numbers=CHUNK_BYTES)
    encoded = make_manifest(folder)
    coming = store.begin(content_id(encoded), encoded)
    first, *rest = coming.missing()
    assert len(rest) == 6
    data = (folder / "adapter_config.json").read_bytes()
    assert coming.write(first, data)
    assert not coming.write(rest[0], data)
    again = BlobStore(tmp_path / "store", max_bytes=10**7)
    assert again.contents == ()
    assert again.begin(content_id(encoded), encoded).missing() == rest
    content = again.add(folder)
    assert BlobStore(tmp_path / "store", max_bytes=1).contents == (content,)


def test_damaged_file_is_noticed_when_it_is_read(store, tmp_path):
    content = store.add(adapter(tmp_path / "a"))
    path = store.folder(content) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedDataError, match="damaged"):
        store.chunk(content, (1, 0))
    assert not store.has(content)
    with pytest.raises(NotFoundError):
        store.manifest(content)


def test_adapter_not_used_for_longest_goes_and_none_that_is_in_use(tmp_path):
    store = BlobStore(tmp_path / "store", max_bytes=2500)
    made = [store.add(adapter(tmp_path / "a", name=str(name))) for name in range(3)]
    for age, content in enumerate(made):
        os.utime(tmp_path / "store" / content, (1000 + age, 1000 + age))
    store.folder(made[0])
    assert store.contents == (made[0], made[2], made[1])
    newest = store.add(adapter(tmp_path / "a", name="3", numbers=200), keep=[made[1]])
    assert set(store.contents) == {newest, made[0], made[1]}
    with pytest.raises(StorageError, match="in use"):
        store.add(adapter(tmp_path / "a", name="4", numbers=200), keep=store.contents)
    with pytest.raises(StorageError, match="keeps 2500"):
        store.add(adapter(tmp_path / "a", name="5", numbers=2000))


def given_up(store, folder):
    """Begin to take an adapter in, and go away after a chunk of its weights."""
    encoded = make_manifest(folder)
    with store.begin(content_id(encoded), encoded) as coming:
        place = next(p for p in coming.missing() if coming.manifest.files[p[0]].name == WEIGHTS)
        data = (folder / WEIGHTS).read_bytes()[:CHUNK_BYTES]
        assert coming.write(place, data)
    return content_id(encoded)


def test_what_never_came_whole_goes_before_what_did(tmp_path):
    each = CHUNK_BYTES + 1000
    store = BlobStore(tmp_path / "store", max_bytes=3 * each)
    numbers = CHUNK_BYTES // 4
    whole = store.add(adapter(tmp_path / "a", numbers=numbers, name="0"))
    coming, partly = tmp_path / "store" / ".coming", []
    for i in range(1, 4):
        folder = adapter(tmp_path / f"p{i}", numbers=numbers, name=f"p{i}")
        partly.append(given_up(store, folder))
        os.utime(coming / partly[-1], (1000 + i, 1000 + i))
    assert sorted(path.name for path in coming.iterdir()) == sorted(partly[1:]), "the oldest went"
    os.utime(tmp_path / "store" / whole, (1000, 1000))
    assert store.add(tmp_path / "p3") == partly[2], "it goes on with what is there"
    assert store.contents == (partly[2], whole)
    more = store.add(adapter(tmp_path / "b", numbers=numbers, name="b"))
    assert set(store.contents) == {more, partly[2], whole}
    assert list(coming.iterdir()) == []


def test_what_is_just_coming_has_its_room(tmp_path):
    folder, other = adapter(tmp_path / "a", name="0"), adapter(tmp_path / "b", name="1")
    encoded = make_manifest(folder)
    size = read_manifest(encoded, content_id(encoded)).size
    store = BlobStore(tmp_path / "store", max_bytes=size * 3 // 2)
    with store.begin(content_id(encoded), encoded) as coming:
        with pytest.raises(StorageError, match="in use"):
            store.add(other)
        for place in coming.missing():
            name = coming.manifest.files[place[0]].name
            assert coming.write(place, (folder / name).read_bytes())
        coming.finish()
    store.add(other)
    assert len(store.contents) == 1


@pytest.mark.parametrize("content", ["../../etc", "", "A" * 64, "a" * 63, ".coming"])
def test_what_is_no_content_id_is_no_path(store, content):
    assert not store.has(content)
    with pytest.raises(NotFoundError):
        store.folder(content)


def _manifest(*files):
    encoded = msgspec.msgpack.encode(Manifest(files))
    return encoded, content_id(encoded)


HASH = bytes(32)
GOOD = [FileEntry(name, 1, (HASH,)) for name in ("adapter_config.json", WEIGHTS, "tinkex.json")]


@pytest.mark.parametrize(
    "files",
    [
        GOOD[:2],
        [*GOOD, FileEntry("weights.pkl", 1, (HASH,))],
        [FileEntry("../adapter_config.json", 1, (HASH,)), *GOOD[1:]],
        GOOD[::-1],
        [GOOD[0], GOOD[1], FileEntry("tinkex.json", 2**21, (HASH,) * 8)],
        [GOOD[0], FileEntry(WEIGHTS, CHUNK_BYTES + 1, (HASH,)), GOOD[2]],
        [GOOD[0], FileEntry(WEIGHTS, 0, ()), GOOD[2]],
        [GOOD[0], FileEntry(WEIGHTS, 1, (b"short",)), GOOD[2]],
    ],
)
def test_manifest_of_anything_else_is_refused(files):
    with pytest.raises(PeerProtocolError):
        read_manifest(*_manifest(*files))
    assert read_manifest(*_manifest(*GOOD)).size == 3


def test_manifest_of_another_adapter_is_refused():
    with pytest.raises(PeerProtocolError, match="not that of"):
        read_manifest(_manifest(*GOOD)[0], "00" * 32)
    junk = b"\xc1 junk"
    with pytest.raises(PeerProtocolError, match="cannot be read"):
        read_manifest(junk, content_id(junk))


def _tensor(**changes):
    return {"a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]} | changes}


@pytest.mark.parametrize(
    "weights",
    [
        b"\x80\x04pickle",
        b"",
        struct.pack("<Q", 2**40) + b"{}",
        safetensors(100, b"not json at all "),
        safetensors(100, b"[]"),
        safetensors(100, b"{}"),
        safetensors(100, _tensor(dtype="I64")),
        safetensors(100, _tensor(shape=[99])),
        safetensors(100, _tensor(shape=[-100])),
        safetensors(100, _tensor(shape=[True, 100])),
        safetensors(100, _tensor(data_offsets=[0, 400, 1])),
        safetensors(100, _tensor(shape=[99], data_offsets=[4, 400])),
        safetensors(100, _tensor(shape=[50], data_offsets=[0, 200])),
        safetensors(100, {"a": 1}),
        safetensors(100, _tensor() | {"b": _tensor()["a"]}),
    ],
)
def test_weights_that_are_no_sound_safetensors_are_refused(tmp_path, weights):
    with pytest.raises(DamagedDataError):
        check_contents(adapter(tmp_path / "a", **{WEIGHTS: weights}))
    check_contents(adapter(tmp_path / "a"))


@pytest.mark.parametrize("text", [b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_json_that_is_no_object_is_refused(tmp_path, text):
    with pytest.raises(DamagedDataError):
        check_contents(adapter(tmp_path / "a", **{"tinkex.json": text}))


def test_folder_without_an_adapter_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="adapter_config"):
        store.add(tmp_path)


@pytest.mark.parametrize("name", sorted(LARGEST_FILES))
def test_folder_with_an_empty_file_is_refused_by_its_name(store, tmp_path, name):
    folder = adapter(tmp_path / "made")
    (folder / name).write_bytes(b"")
    with pytest.raises(InputError, match=f"{name} is empty"):
        store.add(folder)


def test_files_that_are_no_adapter_are_erased_when_they_are_all_here(store, tmp_path):
    with pytest.raises(DamagedDataError):
        store.add(adapter(tmp_path / "a", **{WEIGHTS: b"\x80\x04pickle"}))
    assert store.contents == ()
    assert list((tmp_path / "store" / ".coming").iterdir()) == []


def test_adapter_that_another_thread_removes_meanwhile_is_listed_no_more(store, tmp_path):
    content = store.add(adapter(tmp_path / "a"))
    gone = tmp_path / "store" / ("ab" * 32)
    gone.symlink_to(tmp_path / "nowhere")  # listed with the folder, and not there when looked at
    assert store.contents == (content,)
