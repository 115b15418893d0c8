"""Who a peer is: an Ed25519 key pair, whose public half is the peer's id and its address.

Owns ids, signatures and how a secret key lies on disk. Does not know what a signed message means:
`trust` and `dht` do, each under a `purpose` of its own.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Self

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from tinkex._files import write_new
from tinkex.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from pathlib import Path

PEER_ID_BYTES = 32
SEED_BYTES = 32
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
        if len(signature) != SIGNATURE_BYTES:  # else the two could be cut elsewhere
            return False
        try:
            crypto_sign_open(signature + _to_sign(purpose, message), self.raw)
        except (BadSignatureError, InputError):
            return False
        return True


class KeyPair:
    """A peer's secret key. Its repr shows the public half alone.

    Args:
        seed: 32 random bytes.

    Raises:
        InputError: it has another length.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise InputError(f"a secret key has {SEED_BYTES} bytes, not {len(seed)}")
        public, self._secret = crypto_sign_seed_keypair(seed)
        self.seed = seed
        self.peer_id = PeerId(public)

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a new key pair from the operating system's randomness."""
        return cls(os.urandom(SEED_BYTES))

    @classmethod
    def load_or_create(cls, path: Path) -> KeyPair:
        """Read the key from a file that only its owner may read, or make it.

        Raises:
            ConfigurationError: the file holds no key, or others may read it.
        """
        if path.exists():
            return cls._load(path)
        pair = cls.generate()
        try:
            write_new(path, pair.seed)
        except FileExistsError:
            return cls._load(path)
        return pair

    @classmethod
    def _load(cls, path: Path) -> KeyPair:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(
                f"others may read the secret key {path}: run `chmod 600` on it, or, if somebody "
                "did, delete it and join the network again"
            )
        seed = path.read_bytes()
        if len(seed) != SEED_BYTES:
            raise ConfigurationError(
                f"{path} holds {len(seed)} bytes, which is no secret key: restore it from a "
                "backup, or delete it and join the network again as a new peer"
            )
        return cls(seed)

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign `message` for `purpose`: 64 bytes."""
        return crypto_sign(_to_sign(purpose, message), self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"KeyPair({self.peer_id.short})"


def _to_sign(purpose: str, message: bytes) -> bytes:
    if "\x00" in purpose:
        raise InputError("a purpose has no zero byte: it ends where the message begins")
    return _DOMAIN + purpose.encode() + b"\x00" + message
