"""The operator's keys: made once, kept secret."""

import stat
import threading

import pytest

from tinkex.errors import ConfigurationError
from tinkex.server.accounts.operator_keys import load_keys
from tinkex.server.config import ServerConfig

ALICE = "tml-alice-0123456789"
BOB = "tml-bob-0123456789"


def test_first_start_makes_a_key_only_its_owner_can_read(tmp_path):
    keys, path = load_keys(ServerConfig(data_dir=tmp_path / "data"))
    assert len(keys) == 1
    assert keys[0].startswith("tml-")
    assert len(keys[0]) > 40
    assert path == tmp_path / "data" / "api_key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["api_key"]


def test_second_start_uses_the_same_key(tmp_path):
    config = ServerConfig(data_dir=tmp_path)
    assert load_keys(config) == load_keys(config)


def test_key_file_open_to_others_is_closed_at_the_start(tmp_path):
    config = ServerConfig(data_dir=tmp_path)
    _, path = load_keys(config)
    path.chmod(0o644)
    load_keys(config)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_servers_that_start_at_once_agree_on_one_key(tmp_path):
    found = set()
    barrier = threading.Barrier(8)

    def start():
        barrier.wait()
        found.add(load_keys(ServerConfig(data_dir=tmp_path))[0])

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_key_file_lists_a_key_a_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{ALICE}\n\n  {BOB}  \n")
    keys, path = load_keys(ServerConfig(data_dir=tmp_path, api_key_file=file))
    assert keys == (ALICE, BOB)
    assert path == file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no key"),
        ("sk-0123456789012", "line 1.*tml-"),
        (f"{ALICE}\ntml-x", "line 2.*shorter"),
        ("tml-with space in it", "HTTP header"),
    ],
)
def test_bad_key_file_is_refused_without_repeating_the_key(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_keys(ServerConfig(data_dir=tmp_path, api_key_file=file))
    assert "0123456789012" not in str(caught.value)


def test_missing_key_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_keys(ServerConfig(data_dir=tmp_path, api_key_file=tmp_path / "nowhere"))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "192.0.2.1"])
def test_there_is_no_server_without_keys_wherever_it_listens(tmp_path, host):
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    with pytest.raises(ConfigurationError, match="has no key"):
        load_keys(ServerConfig(data_dir=tmp_path, host=host, api_key_file=file))
