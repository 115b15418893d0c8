from __future__ import annotations

import base64

import msgspec
import pytest

from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.rootkey import PassphraseCipher, read_root_key, write_root_key

PASSPHRASE = "a long passphrase"
SEALED = base64.b64decode(
    "dGlua2V4IG1lc2ggcm9vdCBrZXkgMQqVCAHEELBgbb9M9f60OTlYjLYdXgHEDM51Q0pCc0ndclKVf8QwCWmAvrXU"
    "fDw+nfObBa1BlMU0fx/0swEY/+nsYPsY3yti8OAuAiWJyETyFAXj32LR"
)
"""The seed of 32 sevens under that passphrase, at the least cost that Argon2id has."""


def quick_cipher():
    """The real cipher, at the least cost."""
    return PassphraseCipher(memory_kib=8, passes=1)


def test_a_root_key_is_encrypted_for_its_owners_eyes_alone_and_read_again(tmp_path):
    path, cipher, root = tmp_path / "root.key", quick_cipher(), KeyPair.generate()
    write_root_key(path, root, PASSPHRASE, cipher)
    assert root.seed not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_root_key(path, PASSPHRASE, cipher).peer_id == root.peer_id


def test_a_root_key_is_never_overwritten(tmp_path):
    path, cipher = tmp_path / "root.key", quick_cipher()
    write_root_key(path, KeyPair.generate(), PASSPHRASE, cipher)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="not overwritten"):
        write_root_key(path, KeyPair.generate(), PASSPHRASE, cipher)
    assert path.read_bytes() == before


def test_a_short_passphrase_is_refused(tmp_path):
    with pytest.raises(InputError, match="12 characters"):
        write_root_key(tmp_path / "root.key", KeyPair.generate(), "short", quick_cipher())
    assert list(tmp_path.iterdir()) == []


def test_no_file_and_a_file_that_holds_no_key_are_told_apart(tmp_path):
    cipher = quick_cipher()
    with pytest.raises(ConfigurationError, match="mesh init"):
        read_root_key(tmp_path / "none", PASSPHRASE, cipher)
    (tmp_path / "root.key").write_bytes(cipher.seal(b"no key", PASSPHRASE))
    with pytest.raises(ConfigurationError, match="no root key"):
        read_root_key(tmp_path / "root.key", PASSPHRASE, cipher)


def test_a_file_of_an_earlier_day_opens_with_its_passphrase_alone(tmp_path):
    path = tmp_path / "root.key"
    path.write_bytes(SEALED)
    assert read_root_key(path, PASSPHRASE).seed == bytes([7]) * 32
    with pytest.raises(ConfigurationError, match="passphrase is wrong"):
        PassphraseCipher().open(SEALED, "another passphrase")


@pytest.mark.parametrize("place", range(0, len(SEALED), 5))
def test_no_byte_of_the_file_can_be_changed(place):
    changed = bytearray(SEALED)
    changed[place] ^= 1
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        PassphraseCipher().open(bytes(changed), PASSPHRASE)


def test_cost_that_would_bring_the_machine_down_is_refused():
    dear = PassphraseCipher(memory_kib=8, passes=1).seal(b"x", PASSPHRASE)
    first, _, rest = dear.partition(b"\n")
    body = msgspec.msgpack.decode(rest)
    for place, cost in ((0, 2**31), (1, 2**20)):
        costly = [*body[:place], cost, *body[place + 1 :]]
        with pytest.raises(ConfigurationError, match="cannot be opened"):
            PassphraseCipher().open(first + b"\n" + msgspec.msgpack.encode(costly), PASSPHRASE)
