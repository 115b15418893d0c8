"""HTTPS with a certificate of one's own."""

import datetime as dt
import ipaddress
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from server_support import KEY

from tinkex.errors import ConfigurationError
from tinkex.server.config import ServerConfig
from tinkex.server.run import check_certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that its own key signed: (certificate, key), as files."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tinkex test")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    encoded = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    locked = key.private_bytes(
        serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret")
    )
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(encoded)
    (folder / "locked.pem").write_bytes(locked)
    return folder / "cert.pem", folder / "key.pem"


def test_server_with_a_certificate_speaks_https_and_nothing_else(make_server, certificate):
    cert, key = certificate
    with make_server(tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        headers = {"X-API-Key": KEY}
        with httpx.Client(base_url=server.url, verify=trusting, headers=headers) as client:
            response = client.get("/api/v1/sessions")
            assert response.status_code == 200
            assert "max-age" in response.headers["strict-transport-security"]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/healthz")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.url.replace('https', 'http')}/healthz")


@pytest.mark.parametrize("wrong", ["missing", "cert.pem", "locked.pem"])
def test_certificate_that_does_not_work_is_refused_before_anything_starts(
    certificate, tmp_path, wrong
):
    cert, key = certificate
    config = ServerConfig(data_dir=tmp_path, tls_cert=cert, tls_key=key.with_name(wrong))
    with pytest.raises(ConfigurationError, match="without a password"):
        check_certificate(config)


def test_certificate_without_its_key_is_refused(tmp_path, certificate):
    with pytest.raises(ConfigurationError, match="give both"):
        ServerConfig(data_dir=tmp_path, tls_cert=certificate[0])
