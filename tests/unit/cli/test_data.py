"""`tinkex check`, `backup` and `restore` as commands: what they print and how they end."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.errors import InputError
from tinkex.server.files.layout import DATABASE_NAME


@pytest.fixture
def data_dir(tmp_path, migrated_database):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    shutil.copy(migrated_database, folder / DATABASE_NAME)
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize(
    "command", [("check",), ("check", "--data-dir"), ("serve", "--check", "--data-dir")]
)
def test_sound_folder_passes_each_way_to_ask(data_dir, command):
    result = run(*command, data_dir)
    assert result.exit_code == 0
    assert "nothing is lost" in result.stdout.replace("\n", " ")


def test_damaged_folder_ends_with_one_and_says_it_in_json_too(data_dir):
    content = bytearray((data_dir / DATABASE_NAME).read_bytes())
    content[100:140] = b"\xff" * 40
    (data_dir / DATABASE_NAME).write_bytes(content)
    result = run("-f", "json", "check", data_dir)
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert report["errors"][0]["kind"] == "database"


def test_backup_and_restore_say_what_they_did(data_dir, tmp_path):
    result = run("-f", "json", "backup", tmp_path / "backup", "--data-dir", data_dir)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["files"] == 1
    result = run("restore", tmp_path / "backup", "--data-dir", tmp_path / "restored")
    assert result.exit_code == 0
    assert (tmp_path / "restored" / DATABASE_NAME).is_file()
    with pytest.raises(InputError, match="not empty"):
        run("restore", tmp_path / "backup", "--data-dir", tmp_path / "restored")
