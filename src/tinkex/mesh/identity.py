"""Who a peer is: an Ed25519 key pair, whose public half is the peer's id and its address.

Owns ids, signatures and how a secret key lies on disk. Does not know what a signed message means:
`trust` and `dht` do, each under a `purpose` of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tinkex.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from pathlib import Path

PEER_ID_BYTES = 32
SIGNATURE_BYTES = 64
_DOMAIN = b"tinkex-mesh-1\x00"


class _Raw(NamedTuple):
    raw: bytes


class PeerId(_Raw):
    """A peer's public key: 32 bytes, shown as 64 hexadecimal digits.

    A tuple, as it is a key of most of the mesh's dictionaries, and tuples are hashed in C.

    Raises:
        InputError: it has another length.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Self:
        """Check its length."""
        if len(raw) != PEER_ID_BYTES:
            raise InputError(f"a peer id has {PEER_ID_BYTES} bytes, not {len(raw)}")
        return tuple.__new__(cls, (raw,))

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Read an id from its hexadecimal form.

        Raises:
            InputError: it is none.
        """
        try:
            return cls(bytes.fromhex(text))
        except ValueError as error:
            raise InputError(f"{text!r} is no peer id: give its 64 hexadecimal digits") from error

    @property
    def short(self) -> str:
        """The first ten digits, for people."""
        return self.raw.hex()[:10]

    def __str__(self) -> str:
        return self.raw.hex()

    def signed(self, purpose: str, message: bytes, signature: bytes) -> bool:
        """Whether this peer signed `message` for `purpose`.

        A signature for one purpose never passes for another (RFC 8032 signs bytes, not meanings).
        """
        return Verifier(self).signed(purpose, message, signature)


class Verifier:
    """A peer's public key made ready: half of the work of checking one signature, done once."""

    def __init__(self, peer_id: PeerId) -> None:
        try:
            self._key: Ed25519PublicKey | None = Ed25519PublicKey.from_public_bytes(peer_id.raw)
        except ValueError:
            self._key = None  # no point of the curve: nobody can sign for it

    def signed(self, purpose: str, message: bytes, signature: bytes) -> bool:
        """Whether the peer signed `message` for `purpose`."""
        if self._key is None:
            return False
        try:
            self._key.verify(signature, _to_sign(purpose, message))
        except (InvalidSignature, ValueError):
            return False
        return True


class KeyPair:
    """A peer's secret key. Its repr shows the public half alone.

    Args:
        seed: 32 random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.seed = seed
        self.peer_id = PeerId(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a new key pair from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load_or_create(cls, path: Path) -> KeyPair:
        """Read the key from a file that only its owner may read, or make it.

        Raises:
            ConfigurationError: the file holds no key, or others may read it.
        """
        if path.exists():
            return cls._load(path)
        pair = cls.generate()
        # whole under a name of its own, then linked: no crash leaves half a key, no race two
        beside = path.with_name(f".{path.name}.{pair.peer_id.short}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pair.seed)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(beside)
        except FileExistsError:
            return cls._load(path)
        finally:
            beside.unlink()
        return pair

    @classmethod
    def _load(cls, path: Path) -> KeyPair:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(
                f"others may read the secret key {path}: run `chmod 600` on it, or, if somebody "
                "did, delete it and join the network again"
            )
        seed = path.read_bytes()
        if len(seed) != PEER_ID_BYTES:
            raise ConfigurationError(
                f"{path} holds {len(seed)} bytes, which is no secret key: restore it from a "
                "backup, or delete it and join the network again as a new peer"
            )
        return cls(seed)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign `message` for `purpose`: 64 bytes."""
        return self._key.sign(_to_sign(purpose, message))

    def __repr__(self) -> str:
        return f"KeyPair({self.peer_id.short})"


def _to_sign(purpose: str, message: bytes) -> bytes:
    if "\x00" in purpose:
        raise InputError("a purpose has no zero byte: it ends where the message begins")
    return _DOMAIN + purpose.encode() + b"\x00" + message
