"""Folders and files are their owner's alone, whatever the umask and whatever was there."""

import os
import stat

import pytest

from tinkex.errors import ConfigurationError
from tinkex.server.files.private import (
    make_private,
    open_to_others,
    own_data_dir,
    private_file,
    private_folder,
)


@pytest.fixture
def lax():
    """Let everything be open to everybody; modes are the process's, so the tests put it back."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_new_folder_and_file_are_private_under_a_lax_umask(tmp_path, lax):
    private_folder(tmp_path / "a" / "b")
    private_file(tmp_path / "a" / "b" / "file")
    assert mode(tmp_path / "a" / "b") == 0o700
    assert mode(tmp_path / "a" / "b" / "file") == 0o600


def test_open_ones_are_closed_and_keep_what_they_hold(tmp_path, lax):
    folder = tmp_path / "a"
    folder.mkdir(mode=0o777)
    (folder / "file").write_text("kept")
    assert open_to_others(folder)
    private_folder(folder)
    private_file(folder / "file")
    assert not open_to_others(folder)
    assert not open_to_others(folder / "file")
    assert (folder / "file").read_text() == "kept"


def test_everything_below_is_closed(tmp_path, lax):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("")
    make_private(tmp_path / "a")
    assert [p for p in (tmp_path / "a").rglob("*") if open_to_others(p)] == []


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ConfigurationError, match=r"a file is in its place: choose one of"):
        own_data_dir(tmp_path / "a")
    with pytest.raises(ConfigurationError, match="a file is in its place"):
        own_data_dir(tmp_path / "a" / "below")
    with pytest.raises(FileExistsError):  # within a data folder it is the disk's fault
        private_folder(tmp_path / "a")
