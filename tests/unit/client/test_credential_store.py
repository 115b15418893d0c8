"""The file of keys: the official SDK's too, for its owner's eyes alone, never half-written."""

import json
import stat

import pytest

from tinkex.client.credential_store import CredentialStore, StoredKey
from tinkex.errors import CredentialError

KEY = StoredKey("7", "tml-secret-key", name="laptop", details={"org_details": {"name": "o"}})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "home" / "credentials.json"


@pytest.fixture
def store(path):
    return CredentialStore(path)


def test_key_is_stored_found_and_forgotten(store):
    assert store.default() is None
    store.put(KEY)
    assert store.default() == KEY
    store.remove("7")
    assert store.default() is None
    store.remove("7")


def test_file_has_the_official_form_and_only_its_owner_reads_it(store, path):
    store.put(KEY)
    content = json.loads(path.read_text())
    assert content == {
        "version": 1,
        "default": "7",
        "keys": {
            "7": {
                "type": "manual",
                "key": "tml-secret-key",
                "name": "laptop",
                "details": {"org_details": {"name": "o"}},
            }
        },
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_other_keys_and_unknown_fields_stay(store, path):
    path.parent.mkdir()
    other = {"type": "generated", "key": "tml-other", "name": "x", "note": "n"}
    path.write_text(json.dumps({"version": 1, "default": "1", "keys": {"1": other}}))
    assert store.default().was_generated is True
    store.put(KEY)
    store.remove("7")
    assert json.loads(path.read_text())["keys"] == {"1": other}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "keys": {}}', '{"version": 1, "keys": {"a": 3}}']
)
def test_file_of_another_form_is_never_overwritten(store, path, text):
    path.parent.mkdir()
    path.write_text(text)
    for call in (store.default, lambda: store.put(KEY), lambda: store.remove("7")):
        with pytest.raises(CredentialError, match="credentials"):
            call()
    assert path.read_text() == text


def test_key_is_not_shown():
    assert "secret" not in repr(KEY)
