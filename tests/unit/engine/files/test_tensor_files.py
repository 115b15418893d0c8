"""One file of tensors: whole or absent, and its damage noticed."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.files.tensor_files import DamagedFileError, load_tensors, save_tensors


def test_tensors_come_back_with_their_bits(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    sha256 = save_tensors(tmp_path / "f", {"a": odd, "b": torch.arange(6.0).view(2, 3).t()})
    found = load_tensors(tmp_path / "f", sha256)
    assert torch.equal(found["a"].view(torch.int32), odd.view(torch.int32))
    assert torch.equal(found["b"], torch.arange(6.0).view(2, 3).t())
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_replaced_file_is_whole(tmp_path):
    save_tensors(tmp_path / "f", {"a": torch.zeros(1000)})
    sha256 = save_tensors(tmp_path / "f", {"a": torch.ones(3)})
    assert torch.equal(load_tensors(tmp_path / "f", sha256)["a"], torch.ones(3))


def test_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    sha256 = save_tensors(tmp_path / "f", {"a": torch.ones(3)})
    (tmp_path / "f.part").mkdir()
    with pytest.raises(OSError, match="directory"):
        save_tensors(tmp_path / "f", {"a": torch.zeros(3)})
    assert torch.equal(load_tensors(tmp_path / "f", sha256)["a"], torch.ones(3))


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda _: b""])
def test_damage_is_noticed(tmp_path, damage):
    path = tmp_path / "f"
    sha256 = save_tensors(path, {"a": torch.ones(3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError, match="another sha256"):
        load_tensors(path, sha256)


def test_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "f", "")
