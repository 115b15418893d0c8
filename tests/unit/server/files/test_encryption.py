"""Exports for their recipients alone, in age's format."""

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tinkex.errors import InputError
from tinkex.server.files.encryption import MAX_RECIPIENTS, Recipients, is_encrypted

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "export"
    path.mkdir()
    (path / "weights").write_bytes(CONTENT)
    (path / "empty").write_bytes(b"")
    return path


def identity():
    return pyrage.x25519.Identity.generate()


def test_each_recipient_reads_the_equal_bytes_and_nobody_else_does(folder):
    one, two, other = identity(), identity(), identity()
    Recipients([str(one.to_public()), str(two.to_public())]).encrypt_folder(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["empty.age", "weights.age"]
    hidden = (folder / "weights.age").read_bytes()
    assert hidden.startswith(b"age-encryption.org/v1\n")
    assert CONTENT[:64] not in hidden
    for reader in (one, two):
        assert pyrage.decrypt(hidden, [reader]) == CONTENT
        assert pyrage.decrypt((folder / "empty.age").read_bytes(), [reader]) == b""
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(hidden, [other])


def test_ssh_key_is_a_recipient(folder):
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    Recipients([f"{public} a comment\n"]).encrypt_folder(folder)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    reader = pyrage.ssh.Identity.from_buffer(secret)
    assert pyrage.decrypt((folder / "weights.age").read_bytes(), [reader]) == CONTENT


@pytest.mark.parametrize(
    "text", ["", "age1", "age1pq1qqqq", "ssh-ed25519 AAAA", "someone@example.org", "x" * 5000]
)
def test_bad_recipient_is_refused_with_its_place(text):
    good = str(identity().to_public())
    with pytest.raises(InputError, match=r"age_encryption_recipients\[1\]") as caught:
        Recipients([good, text])
    assert "[0]" not in str(caught.value)


def test_secret_key_is_refused_and_not_repeated():
    secret = str(identity())
    with pytest.raises(InputError, match="secret key") as caught:
        Recipients([secret])
    assert secret[20:40] not in str(caught.value)


def test_no_recipient_and_too_many_are_refused():
    with pytest.raises(InputError, match="empty"):
        Recipients([])
    with pytest.raises(InputError, match="at most"):
        Recipients([str(identity().to_public())] * (MAX_RECIPIENTS + 1))


def test_encrypted_files_are_known_by_their_names():
    assert is_encrypted("weights.age")
    assert not is_encrypted("weights")
