"""A peer's key pair as TLS wants it: a certificate that it signed itself, and ssl's contexts.

Owns the certificates' form and reading them. What is proven with them: `tls_handshake`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import ssl
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from tinkex.errors import TrustError
from tinkex.mesh.identity import KeyPair, PeerId

PROTOCOL = "tinkex-mesh/1"
"""What both sides must name (ALPN)."""

# Nobody checks the dates: the key is what is known, and role certificates expire by themselves.
_FROM = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_UNTIL = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
_OPEN_FILES = Path("/proc/self/fd")


class TlsKeys:
    """A key pair, its certificate, and the contexts for both sides of a connection."""

    def __init__(self, key_pair: KeyPair) -> None:
        self.key_pair = key_pair
        key = Ed25519PrivateKey.from_private_bytes(key_pair.seed)
        certificate = _self_signed(key)
        self.certificate = certificate.public_bytes(Encoding.DER)
        self.listening = _context(ssl.PROTOCOL_TLS_SERVER)
        # Every connection is a full handshake: what the hello proves belongs to one of them.
        self.listening.num_tickets = 0
        _load(self.listening, key, certificate)
        self.dialling = _context(ssl.PROTOCOL_TLS_CLIENT)


def peer_of_certificate(certificate: bytes | None) -> PeerId:
    """The key in a certificate (DER). TLS has shown that the other side holds its secret half.

    Raises:
        TrustError: there is none, it cannot be read, or it is of another kind.
    """
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
    except ValueError as error:
        raise TrustError("the certificate that was shown cannot be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TrustError("the certificate that was shown holds no Ed25519 key")
    return PeerId(key.public_bytes_raw())


def _self_signed(key: Ed25519PrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tinkex mesh peer")])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=_FROM,
        not_valid_after=_UNTIL,
    )
    return builder.sign(key, None)


def _context(side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([PROTOCOL])
    # No authority vouches for peers: the dialler compares the key itself with the one it wants.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _load(context: ssl.SSLContext, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
    """Hand the key over. `ssl` reads files only, so it lies in one for a moment, encrypted."""
    password = secrets.token_bytes(24).hex()
    locked = BestAvailableEncryption(password.encode())
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)
    content += certificate.public_bytes(Encoding.PEM)
    with _readable(content) as path:
        context.load_cert_chain(path, password=password)


@contextlib.contextmanager
def _readable(content: bytes) -> Iterator[Path]:
    """A path to read `content` from, on no disk where the system has files in memory."""
    if sys.platform == "linux" and _OPEN_FILES.is_dir():
        descriptor = os.memfd_create("tinkex-tls")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield _OPEN_FILES / str(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="tinkex-tls-") as folder:
        path = Path(folder) / "key.pem"
        path.write_bytes(content)
        yield path
