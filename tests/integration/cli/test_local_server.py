"""A child `tinkex serve` that cannot start says why; one that can leaves nothing behind."""

import subprocess
import sys

import psutil
import pytest
from patience import PATIENCE_S

from tinkex.errors import ServerStartError
from tinkex.local import LocalServer


def test_server_that_cannot_load_its_model_reports_its_log(tmp_path):
    missing = str(tmp_path / "no-model")
    server = LocalServer(tmp_path / "data", ["--base-model", missing])
    with pytest.raises(ServerStartError, match="no-model"), server:
        pass


def test_server_with_a_wrong_option_is_reported(tmp_path):
    with pytest.raises(ServerStartError, match="--alias"), LocalServer(tmp_path, ["--alias", "x"]):
        pass


def test_data_folder_may_be_given_as_text(tmp_path):
    with LocalServer(str(tmp_path / "data")) as server:
        assert server.address.url.startswith("http://127.0.0.1:")
        assert (tmp_path / "data" / "server.log").exists()


def test_server_ends_with_the_program_that_started_it(tmp_path):
    program = """
import os, sys
from tinkex.local import LocalServer
with LocalServer(sys.argv[1]) as server:
    print(server.pid, os.getpgid(server.pid) == os.getpgrp(), flush=True)
    sys.stdin.read()
"""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as started:
        pid, same_group = started.stdout.readline().split()
        server = psutil.Process(int(pid))
        assert same_group == "False"  # else a terminal would send its Ctrl-C to both
        started.kill()
    try:
        server.wait(PATIENCE_S)
    except psutil.TimeoutExpired:
        assert server.status() == psutil.STATUS_ZOMBIE
    assert b"Traceback" not in (tmp_path / "server.log").read_bytes()


def test_address_before_start_says_what_to_do(tmp_path):
    with pytest.raises(ServerStartError, match="with LocalServer"):
        _ = LocalServer(tmp_path).address


def test_address_does_not_show_the_key(tmp_path):
    path = tmp_path / "ready.json"
    path.write_text('{"url": "u", "api_key": "tml-secret", "pid": 1, "base_models": []}')
    from tinkex.local import ServerAddress

    assert "tml-secret" not in repr(ServerAddress.read(path))
