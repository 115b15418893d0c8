"""Where a network's root key lies: in a file, encrypted with a passphrase.

Owns that file. The passphrase is stretched with Argon2id (RFC 9106), which takes half a second and
256 MiB and is meant to; the key is sealed with ChaCha20-Poly1305 (RFC 8439). No worker reads this
file: only making, inviting and rotating need the key. docs/guides/mesh-root-key.md says what to do
where it is lost or stolen.

The cost is written into the file. The age format was tried before: it measures the machine at each
sealing and each opening, so that a file sealed on an idle machine took half a minute to open on a
busy one, or was refused there as too costly.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import msgspec
from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tinkex._files import flush
from tinkex.errors import ConfigurationError, InputError
from tinkex.mesh.identity import KeyPair

MIN_PASSPHRASE_LENGTH = 12
_KEPT_MODE = 0o600
_FIRST_LINE = b"tinkex mesh root key 1\n"
_MOST_MEMORY_KIB = 4 * 2**20
_MOST_PASSES = 64


class Cipher(Protocol):
    """Encrypts under a passphrase."""

    def seal(self, plaintext: bytes, passphrase: str) -> bytes:
        """Encrypt."""

    def open(self, sealed: bytes, passphrase: str) -> bytes:
        """Decrypt.

        Raises:
            ConfigurationError: the passphrase is wrong, or the file damaged.
        """


class _Sealed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The file after its first line."""

    memory_kib: int
    passes: int
    salt: bytes
    nonce: bytes
    sealed: bytes


class PassphraseCipher:
    """Argon2id and ChaCha20-Poly1305.

    Args:
        memory_kib: that stretching takes.
        passes: over that memory.
    """

    def __init__(self, *, memory_kib: int = 256 * 1024, passes: int = 3) -> None:
        self._memory_kib = memory_kib
        self._passes = passes

    def seal(self, plaintext: bytes, passphrase: str) -> bytes:
        """Encrypt."""
        salt, nonce = os.urandom(16), os.urandom(12)
        key = _stretched(passphrase, salt, self._memory_kib, self._passes)
        sealed = ChaCha20Poly1305(key).encrypt(nonce, plaintext, _FIRST_LINE)
        body = _Sealed(self._memory_kib, self._passes, salt, nonce, sealed)
        return _FIRST_LINE + msgspec.msgpack.encode(body)

    def open(self, sealed: bytes, passphrase: str) -> bytes:
        """Decrypt, at the cost that the file was sealed with.

        Raises:
            ConfigurationError: the passphrase is wrong, or the file damaged.
        """
        try:
            found = _read(sealed)
            key = _stretched(passphrase, found.salt, found.memory_kib, found.passes)
            return ChaCha20Poly1305(key).decrypt(found.nonce, found.sealed, _FIRST_LINE)
        except (InvalidTag, ValueError, HashingError) as error:
            raise ConfigurationError(
                "the root key cannot be opened: the passphrase is wrong, or the file is damaged; "
                "try again, or restore the file from a backup"
            ) from error


def _read(sealed: bytes) -> _Sealed:
    if not sealed.startswith(_FIRST_LINE):
        raise ValueError("another first line")
    found = msgspec.msgpack.decode(sealed.removeprefix(_FIRST_LINE), type=_Sealed)
    if found.memory_kib > _MOST_MEMORY_KIB or found.passes > _MOST_PASSES:
        raise ValueError("a cost beyond all that was ever written")
    return found


def _stretched(passphrase: str, salt: bytes, memory_kib: int, passes: int) -> bytes:
    return hash_secret_raw(
        passphrase.encode(), salt, passes, memory_kib, parallelism=1, hash_len=32, type=Type.ID
    )


def write_root_key(
    path: Path, root: KeyPair, passphrase: str, cipher: Cipher | None = None
) -> None:
    """Write a root key to a new file that its owner alone may read.

    Raises:
        InputError: the passphrase is too short.
        ConfigurationError: the file exists; a root key is never overwritten.
        OSError: the disk refuses it; then there is no file.
    """
    if len(passphrase) < MIN_PASSPHRASE_LENGTH:
        raise InputError(
            f"a root key's passphrase has at least {MIN_PASSPHRASE_LENGTH} characters; this one "
            f"has {len(passphrase)}"
        )
    sealed = (cipher or PassphraseCipher()).seal(root.seed, passphrase)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _KEPT_MODE)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists: a root key is not overwritten; move it away, or name another file"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(sealed)
            file.flush()
            os.fsync(file.fileno())
        flush(path.parent)
    except OSError:
        path.unlink()  # a part of it would keep the next attempt out
        raise


def read_root_key(path: Path, passphrase: str, cipher: Cipher | None = None) -> KeyPair:
    """Read a root key.

    Raises:
        ConfigurationError: there is none, the passphrase is wrong, or the file is damaged.
    """
    try:
        sealed = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the root key cannot be read ({error.strerror}); it is where `tinkex mesh "
            "init` wrote it, or in your backup"
        ) from error
    seed = (cipher or PassphraseCipher()).open(sealed, passphrase)
    try:
        return KeyPair(seed)
    except ValueError as error:
        raise ConfigurationError(f"{path} holds no root key") from error
