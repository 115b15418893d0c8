"""Files that are written whole or not at all, and the disk's keeping them."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tinkex._files import read_whole, write_new, write_whole


@pytest.fixture
def forced(monkeypatch):
    """What the disk was told to keep, and how large it was: in order."""
    told, really = [], os.fsync

    def noted(descriptor):
        found = os.fstat(descriptor)
        told.append((found.st_ino, None if stat.S_ISDIR(found.st_mode) else found.st_size))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return told


@pytest.mark.parametrize("write", [write_whole, write_new])
def test_contents_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path, forced, write
):
    path = tmp_path / "word"
    write(path, b"first")
    assert forced == [(path.stat().st_ino, 5), (tmp_path.stat().st_ino, None)]
    assert path.read_bytes() == b"first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_disk_that_refuses_leaves_the_old_file_and_the_next_write_succeeds(tmp_path, monkeypatch):
    path = tmp_path / "word"
    write_whole(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no room"):
            write_whole(path, b"new")
        assert [entry.name for entry in tmp_path.iterdir()] == ["word"]
    assert read_whole(path) == b"old"
    write_whole(path, b"new")
    assert read_whole(path) == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["word"]


def test_new_file_takes_no_place_of_another(tmp_path):
    path = tmp_path / "word"
    write_new(path, b"first")
    with pytest.raises(FileExistsError):
        write_new(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["word"]


def test_file_that_is_not_there_reads_as_none(tmp_path):
    assert read_whole(tmp_path / "word") is None
