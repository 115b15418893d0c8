"""Where the key comes from, and that it stays secret."""

from __future__ import annotations

import asyncio
import json

import pytest

from tinkex.client.credentials import (
    CommandKey,
    StaticKey,
    check_key,
    credentials_path,
    read_stored_key,
    resolve_credentials,
)
from tinkex.errors import CredentialError
from tinkex.testing import VirtualClock


def resolve(environment, api_key=None):
    return resolve_credentials(api_key, environment, VirtualClock())


def store(home, content):
    path = home / ".tinker" / "credentials.json"
    path.parent.mkdir()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def stored(key):
    return {
        "version": 1,
        "default": "k1",
        "keys": {"k1": {"type": "manual", "key": key, "name": "laptop"}},
    }


async def test_argument_wins_over_variables_win_over_command_wins_over_file(tmp_path):
    store(tmp_path, stored("tml-file"))
    file = {"HOME": str(tmp_path)}
    command = {**file, "TINKER_CREDENTIAL_CMD": "echo tml-command"}
    official = {**command, "TINKER_API_KEY": "tml-official"}
    ours = {**official, "TINKEX_API_KEY": "tml-ours"}
    assert await resolve(file).key() == "tml-file"
    assert await resolve(command).key() == "tml-command"
    assert await resolve(official).key() == "tml-official"
    assert await resolve(ours).key() == "tml-ours"
    assert await resolve(ours, "tml-argument").key() == "tml-argument"


@pytest.mark.parametrize("key", ["sk-123", "", "  ", "tml", "Bearer tml-1", "tml-a b", "tml-ü"])
def test_key_of_another_form_is_refused_without_being_repeated(key):
    with pytest.raises(CredentialError) as caught:
        check_key(key)
    assert "123" not in str(caught.value)


def test_space_around_a_key_is_dropped():
    assert check_key(" tml-abc\n") == "tml-abc"
    assert check_key("eyJabc.def.ghi") == "eyJabc.def.ghi"


def test_no_key_at_all_says_what_to_do(tmp_path):
    with pytest.raises(CredentialError, match="api_key"):
        resolve({"HOME": str(tmp_path)})


@pytest.mark.parametrize("content", ["{", "[]", '{"default": "x", "keys": {}}', '"text"'])
def test_broken_credentials_file_is_named(tmp_path, content):
    path = store(tmp_path, content)
    with pytest.raises(CredentialError, match=str(path)):
        resolve({"HOME": str(tmp_path)})


def test_file_without_a_default_has_no_key(tmp_path):
    path = store(tmp_path, {"version": 1, "keys": {}})
    assert read_stored_key(path) is None
    assert credentials_path({"HOME": str(tmp_path)}) == path


async def test_command_runs_once_for_concurrent_requests_and_again_after_a_minute(tmp_path):
    count = tmp_path / "count"
    clock = VirtualClock()
    credentials = CommandKey(f"echo x >> {count}; echo tml-from-command", clock)
    keys = await asyncio.gather(*(credentials.key() for _ in range(10)))
    assert set(keys) == {"tml-from-command"}
    assert count.read_text().count("x") == 1
    clock.advance(61)
    await credentials.key()
    assert count.read_text().count("x") == 2


async def test_refused_key_is_asked_for_again(tmp_path):
    count = tmp_path / "count"
    credentials = CommandKey(f"echo x >> {count}; echo tml-from-command", VirtualClock())
    key = await credentials.key()
    assert credentials.refused(key)
    await credentials.key()
    assert count.read_text().count("x") == 2
    assert not StaticKey("tml-a").refused("tml-a")


@pytest.mark.parametrize(
    ("command", "words"), [("exit 3", "exit code 3"), ("echo nonsense", "must start with")]
)
async def test_command_that_gives_no_key_is_a_typed_error(command, words):
    with pytest.raises(CredentialError, match=words):
        await CommandKey(command, VirtualClock()).key()


def test_key_is_in_no_repr():
    assert "secret" not in repr(StaticKey("tml-secret"))
    assert "secret" not in repr(CommandKey("cat /secret", VirtualClock()))
