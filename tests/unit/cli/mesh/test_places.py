"""Ready files and sessions: private, whole, and each process removes its own alone."""

import stat

import pytest

from tinkex.cli.mesh.places import ReadyFiles, find_ready, read_private, worker_dir, write_private
from tinkex.errors import ConfigurationError, InputError


def test_file_is_its_owners_alone_and_read_again(tmp_path):
    path = tmp_path / "new" / "ready.json"
    write_private(path, {"url": "x"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_private(path) == {"url": "x"}
    assert [one.name for one in path.parent.iterdir()] == ["ready.json"]


def test_file_that_is_not_there_is_none_and_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "ready.json"
    assert read_private(path) is None
    for content in ("{", "[]"):
        path.write_text(content)
        with pytest.raises(ConfigurationError, match="delete it"):
            read_private(path)


def test_process_that_never_served_leaves_anothers_ready_file(tmp_path):
    path = tmp_path / "ready.json"
    running, failed = ReadyFiles(path, None), ReadyFiles(path)
    running.write({"pid": 1})
    failed.remove()
    assert read_private(path) == {"pid": 1}
    running.remove()
    assert not path.exists()


def test_each_worker_has_a_folder_in_the_meshs(tmp_path):
    assert worker_dir(tmp_path, "gateway", None) == tmp_path / "gateway"
    assert worker_dir(tmp_path, "processor", "big") == tmp_path / "big"
    for name in ("", "..", "a/b", "/", "."):
        with pytest.raises(InputError, match="folder's name"):
            worker_dir(tmp_path, "processor", name)


def test_ready_file_of_the_whole_mesh_goes_before_a_workers(tmp_path):
    assert find_ready(tmp_path, ("client",)) is None
    write_private(tmp_path / "gateway" / "ready.json", {"pid": 1})
    assert find_ready(tmp_path, ("client",)) is None
    write_private(tmp_path / "client" / "ready.json", {"pid": 2})
    assert find_ready(tmp_path, ("client", "gateway")) == {"pid": 2}
    write_private(tmp_path / "ready.json", {"pid": 3})
    assert find_ready(tmp_path, ("client", "gateway")) == {"pid": 3}
