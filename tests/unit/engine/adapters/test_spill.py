"""The folder behind memory: private, bounded, its own engine's alone."""

from __future__ import annotations

import os

import pytest
import torch

from tinkex.engine.adapters.spill import SpillFolder, _leave, erase_leftovers
from tinkex.errors import ConfigurationError, EngineError


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "lock")


def test_what_is_written_is_read_private_and_erased(tmp_path):
    folder = tmp_path / "deep" / "spill"
    spill = SpillFolder(folder, None)
    file = spill.write({"a": torch.ones(3)})
    assert torch.equal(spill.read(file)["a"], torch.ones(3))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert spill.held_bytes == 12
    spill.erase(file)
    assert names(folder) == []
    assert spill.held_bytes == 0


def test_start_erases_what_an_earlier_engine_left_and_nothing_of_others(tmp_path):
    (tmp_path / "0.safetensors").write_bytes(b"old")
    (tmp_path / "17.safetensors.part").write_bytes(b"half")
    (tmp_path / "thesis.safetensors").write_bytes(b"mine")
    spill = SpillFolder(tmp_path, None)
    assert names(tmp_path) == ["thesis.safetensors"]
    del spill


def test_engine_that_goes_erases_its_files_and_lets_the_folder_go(tmp_path):
    spill = SpillFolder(tmp_path, None)
    spill.write({"a": torch.ones(3)})
    del spill
    assert names(tmp_path) == []
    spill = SpillFolder(tmp_path, None)
    assert spill.held_bytes == 0


def test_forked_child_that_ends_erases_nothing(tmp_path):
    spill = SpillFolder(tmp_path, None)
    file = spill.write({"a": torch.ones(3)})
    _leave(tmp_path, -1, os.getpid() + 1)
    assert torch.equal(spill.read(file)["a"], torch.ones(3))


def test_two_engines_do_not_share_a_folder(tmp_path):
    first = SpillFolder(tmp_path, None)
    file = first.write({"a": torch.ones(3)})
    with pytest.raises(ConfigurationError, match="another engine uses it"):
        SpillFolder(tmp_path, None)
    assert torch.equal(first.read(file)["a"], torch.ones(3))


def test_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="no spill folder"):
        SpillFolder(tmp_path / "file", None)


def test_bound_on_bytes_refuses_the_next_file(tmp_path):
    spill = SpillFolder(tmp_path, 20)
    file = spill.write({"a": torch.ones(3)})
    with pytest.raises(EngineError, match="12 of 20 bytes"):
        spill.write({"a": torch.ones(3)})
    spill.erase(file)
    spill.write({"a": torch.ones(5)})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_disk_that_is_full_is_told_and_counts_nothing(tmp_path):
    spill = SpillFolder(tmp_path, None)
    (tmp_path / "0.safetensors.part").symlink_to("/dev/full")
    with pytest.raises(EngineError, match="No space left on device") as caught:
        spill.write({"a": torch.ones(3)})
    assert "Nothing was lost" in str(caught.value)
    assert spill.held_bytes == 0
    assert names(tmp_path) == []


def test_leftovers_of_all_numbered_folders_are_erased_but_not_those_in_use(tmp_path):
    for name in ("0", "1", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "7.safetensors").write_bytes(b"old")
    running = SpillFolder(tmp_path / "1", None)
    running.write({"a": torch.ones(3)})
    erase_leftovers(tmp_path)
    erase_leftovers(tmp_path / "none")
    assert [names(tmp_path / n) for n in ("0", "1", "notes")] == [
        [],
        ["0.safetensors"],
        ["7.safetensors"],
    ]
    running.close()
    assert names(tmp_path / "1") == []
