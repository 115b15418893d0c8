"""Ready files and sessions: private, whole, and each process removes its own alone."""

import stat
import subprocess
import sys

import pytest

from tinkex.cli.mesh.places import (
    ReadyFiles,
    find_ready,
    read_private,
    read_ready,
    worker_dir,
    write_private,
)
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
    gateway, client, whole = (
        ReadyFiles(tmp_path / folder / "ready.json") for folder in ("gateway", "client", "")
    )
    gateway.write({"pid": 1})
    assert find_ready(tmp_path, ("client",)) is None
    client.write({"pid": 2})
    assert find_ready(tmp_path, ("client", "gateway")) == {"pid": 2}
    whole.write({"pid": 3})
    assert find_ready(tmp_path, ("client", "gateway")) == {"pid": 3}
    for running in (gateway, client, whole):
        running.remove()


KILLED = """
import os, pathlib, signal, sys
from tinkex.cli.mesh.places import ReadyFiles
ready = ReadyFiles(pathlib.Path(sys.argv[1]))
ready.write({"pid": 1})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_that_was_given_a_name_is_found_by_its_role(tmp_path):
    named = ReadyFiles(tmp_path / "gpu-0" / "ready.json")
    named.write({"role": "processor", "url": "x"})
    assert find_ready(tmp_path, ("client",)) is None
    assert find_ready(tmp_path, ("client", "processor"), url="y") is None
    assert find_ready(tmp_path, ("client", "processor"), url="x") == {
        "role": "processor",
        "url": "x",
    }
    usual = ReadyFiles(tmp_path / "processor" / "ready.json")
    usual.write({"role": "processor", "url": "z"})
    assert find_ready(tmp_path, ("processor",))["url"] == "z"
    for files in (named, usual):
        files.remove()


def test_ready_file_of_a_process_that_was_killed_is_not_believed(tmp_path):
    path = tmp_path / "ready.json"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.exists()
    assert read_ready(path) is None
    assert find_ready(tmp_path, ("client",)) is None
    worker = ReadyFiles(tmp_path / "client" / "ready.json")
    worker.write({"pid": 2})
    assert find_ready(tmp_path, ("client",)) == {"pid": 2}
    worker.remove()


def test_start_removes_what_a_killed_process_left_and_nothing_of_a_running_one(tmp_path):
    path = tmp_path / "deep" / "ready.json"
    starting = ReadyFiles(path)
    starting.forget()
    write_private(path, {"pid": 1})
    starting.forget()
    assert not path.exists()
    starting.write({"pid": 2})
    ReadyFiles(path).forget()
    assert read_ready(path) == {"pid": 2}
    starting.remove()


def test_ready_file_that_another_process_has_written_over_stays(tmp_path):
    path = tmp_path / "ready.json"
    first, second = ReadyFiles(path), ReadyFiles(path)
    first.write({"pid": 1})
    second.write({"pid": 2})
    first.remove()
    assert read_ready(path) == {"pid": 2}
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_ready_file_that_cannot_be_written_is_said_before_anything_starts(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written"):
        ReadyFiles(tmp_path).forget()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        ReadyFiles(tmp_path / "file" / "ready.json").forget()
