"""Making a network quickly: a cipher that costs nothing."""

from tinkex.errors import ConfigurationError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.base import Contact

PASSPHRASE = "correct horse battery"
SOMEBODY = Contact(KeyPair(bytes(32)).peer_id, ("tls:127.0.0.1:4433",))


class Xor:
    """A cipher for tests: scrypt would take seconds."""

    def seal(self, plaintext, passphrase):
        return self._xor(plaintext, passphrase)

    def open(self, sealed, passphrase):
        if passphrase != PASSPHRASE:
            raise ConfigurationError("the passphrase is wrong")
        return self._xor(sealed, passphrase)

    def _xor(self, data, passphrase):
        return bytes(a ^ b for a, b in zip(data, passphrase.encode() * 9, strict=False))


class Plain:
    """A cipher for tests that open the key under a passphrase that they do not know."""

    def seal(self, plaintext, _):
        return plaintext

    def open(self, sealed, _):
        return sealed
