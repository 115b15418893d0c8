"""`tinkex mesh up`: its flags go before the environment and the file, its defaults do not."""

import pytest
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.cli.mesh import logs, up


@pytest.fixture
def chats():
    """The commands that it says to type."""
    return []


@pytest.fixture
def settings(monkeypatch, tmp_path, chats):
    """Give the settings that a command line comes to; nothing is run."""
    found = []

    async def run(config, *_, chat):
        found.append(config)
        chats.append(chat)

    monkeypatch.setattr(up, "_run", run)
    monkeypatch.setattr(logs, "log_to_stderr", lambda *_: None)
    monkeypatch.setenv("TINKEX_MESH_DATA_DIR", str(tmp_path))
    file = tmp_path / "mesh.toml"
    file.write_text('transport = "tls"\n[client]\nport = 9200\n')

    def given(*arguments):
        result = CliRunner().invoke(app, ["mesh", "up", *arguments])
        assert result.exit_code == 0, result.output
        return found.pop()

    return file, given


def test_file_and_environment_hold_where_no_flag_is_given(settings, monkeypatch):
    file, given = settings
    config = given("--config", str(file))
    assert (config.transport, config.client.port) == ("tls", 9200)
    monkeypatch.setenv("TINKEX_MESH_CLIENT_PORT", "9300")
    assert given("--config", str(file)).client.port == 9300


def test_flags_go_before_them_and_without_any_the_defaults_hold(settings):
    file, given = settings
    config = given("--config", str(file), "--transport", "iroh", "--port", "0")
    assert (config.transport, config.client.port) == ("iroh", 0)
    config = given()
    assert (config.transport, config.client.port) == ("iroh", 8100)


def test_network_lies_apart_from_others_in_the_folder_however_that_is_given(settings, tmp_path):
    _, given = settings
    assert given().data_dir == tmp_path / "local"
    other = tmp_path / "other"
    assert given("--data-dir", str(other)).data_dir == other / "local"


def test_what_it_says_to_type_finds_this_network_and_its_model(settings, chats, tmp_path):
    _, given = settings
    given()
    given("--data-dir", str(tmp_path / "my net"))
    given("--base-model", "models/my llama")
    assert chats == [
        "tinkex mesh chat tinkex/sprout",
        f"tinkex mesh chat tinkex/sprout --data-dir '{tmp_path / 'my net'}'",
        "tinkex mesh chat 'models/my llama'",
    ]
