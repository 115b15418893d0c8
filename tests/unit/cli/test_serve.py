"""What `tinkex serve` prints and writes."""

import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tinkex.cli.serve import forget_ready_file, print_banner, write_ready_file
from tinkex.errors import ConfigurationError
from tinkex.server.run import ServerInfo

KEY = "tml-0123456789abcdef"


@pytest.fixture
def info(tmp_path):
    return ServerInfo(
        url="http://127.0.0.1:8000",
        api_key=KEY,
        api_key_path=tmp_path / "api_key",
        pid=4242,
        base_models=("tinkex/sprout",),
        device="cpu",
        weight_dtype="int8",
        data_dir=tmp_path,
    )


def test_ready_file_holds_what_scripts_need(info, tmp_path):
    path = tmp_path / "deep" / "ready.json"
    write_ready_file(path, info)
    assert json.loads(path.read_text()) == {
        "url": info.url,
        "api_key": KEY,
        "pid": 4242,
        "base_models": ["tinkex/sprout"],
    }


def test_ready_file_is_for_its_owner_alone_and_leaves_nothing_beside(info, tmp_path):
    path = tmp_path / "ready.json"
    write_ready_file(path, info)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["ready.json"]


def test_ready_file_replaces_an_old_one_with_open_permissions(info, tmp_path):
    path = tmp_path / "ready.json"
    path.write_text("old")
    path.chmod(0o644)
    write_ready_file(path, info)
    assert json.loads(path.read_text())["pid"] == 4242
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_banner_shows_the_key_on_a_terminal(info, capsys):
    print_banner(info, aliases={}, show_key=True)
    out = capsys.readouterr().out
    assert KEY in out
    assert info.url in out
    assert "tinkex/sprout" in out
    assert "cpu, weights in int8" in out


def test_banner_names_the_key_file_where_output_may_be_recorded(info, capsys):
    print_banner(info, aliases={"big/model": "tinkex/sprout"}, show_key=False)
    out = capsys.readouterr().out
    assert KEY not in out
    assert str(info.api_key_path) in out
    assert "big/model = tinkex/sprout" in out


def test_banner_can_be_typed_where_the_folder_has_a_space(info, capsys, tmp_path):
    folder = tmp_path / "Application Support"
    folder.mkdir()
    (folder / "api_key").write_text(KEY + "\n")
    print_banner(replace(info, api_key_path=folder / "api_key"), aliases={}, show_key=False)
    (line,) = (one for one in capsys.readouterr().out.splitlines() if "TINKER_API_KEY" in one)
    shell = ["sh", "-c", f'{line}; echo "$TINKER_API_KEY"']
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == f"{KEY}\n"


BANNER = """
from types import SimpleNamespace

from tinkex.cli.serve import show_banner

# what `ServerInfo` has, without the server's modules: they bring PyTorch
info = SimpleNamespace(url="http://127.0.0.1:1", api_key="tml-key", api_key_path="data/api_key")
info.base_models, info.device, info.weight_dtype, info.data_dir = ["base"], "cpu", "f32", "data"
show_banner(info, aliases={})
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stdout", ["full", "closed", "left"])
def test_output_that_refuses_the_banner_ends_no_server(stdout):
    command = [sys.executable, "-c", BANNER]
    if stdout == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full, os.fdopen(writer, "wb") as left:
        output = {"full": full, "closed": None, "left": left}[stdout]
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.PIPE, text=True, check=False, timeout=240
        )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == (stdout != "closed"), done.stderr


def test_ready_file_of_an_earlier_server_is_removed_before_models_are_loaded(tmp_path):
    path = tmp_path / "deep" / "ready.json"
    forget_ready_file(path)
    path.write_text("of a server that was killed")
    forget_ready_file(path)
    assert not path.exists()


def test_ready_file_that_cannot_be_written_is_refused_before_models_are_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"ready\.json cannot be written"):
        forget_ready_file(tmp_path / "file" / "ready.json")


def test_help_names_defaults(capsys):
    from typer.testing import CliRunner

    from tinkex.cli.app import app

    told = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    words = " ".join(told.split())
    assert "reachable from this machine only. [default: 127.0.0.1]" in words
    assert "[default: tinkex/sprout]" in words
    assert "[default: 65536 MiB]" in words


def test_help_names_every_option(capsys):
    from typer.testing import CliRunner

    from tinkex.cli.app import app

    result = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in ("--host", "--port", "--data-dir", "--base-model", "--alias", "--api-key-file"):
        assert option in result.output


def test_readme_shows_only_flags_that_exist():
    from typer.main import get_command

    from tinkex.cli.app import app

    readme = (Path(__file__).parents[3] / "README.md").read_text()
    section = readme.partition("### `tinkex serve`")[2].partition("\n### ")[0]
    shown = set(re.findall(r"`(--[a-z-]+)", section))
    serve = get_command(app).commands["serve"]
    flags = {name for one in serve.params for name in (*one.opts, *one.secondary_opts)}
    assert {"--host", "--data-dir", "--config"} <= shown <= flags
