"""Attacks on access tokens: each gets the same answer, and tells nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import jwt
import pytest

from tinkex.errors import AuthenticationError
from tinkex.mesh.accounts import tokens
from tinkex.mesh.accounts.tokens import Claims, TokenReader, TokenSigner, is_token
from tinkex.mesh.identity import KeyPair

NOW = 1_700_000_000.0
AUTH, NETWORK = KeyPair(b"a" * 32), KeyPair(b"n" * 32).peer_id
FORGED = "none of this network"


def claims(**changes):
    values = {
        "account_id": "acc-1",
        "session_id": "ses-1",
        "issued_at": NOW,
        "expires_at": NOW + 600,
    }
    return Claims(**{**values, **changes})


class Setup:
    def __init__(self):
        self.signer = TokenSigner(AUTH, NETWORK)
        self.key = self.signer.announce("k1", now=NOW, lasts_s=1000, token_s=600)
        self.reader = TokenReader(NETWORK)
        self.reader.add(self.key)

    def token(self, **changes):
        return self.signer.sign("k1", claims(**changes))


@pytest.fixture
def setup():
    return Setup()


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def changed(token, *, header=None, payload=None, signature=None):
    parts = token.split(".")
    for position, changes in ((0, header), (1, payload)):
        if changes is not None:
            decoded = json.loads(base64.urlsafe_b64decode(parts[position] + "=="))
            parts[position] = part({**decoded, **changes})
    if signature is not None:
        parts[2] = signature
    return ".".join(parts)


def refused(setup, token, words=FORGED, now=NOW):
    with pytest.raises(AuthenticationError, match=words) as found:
        setup.reader.read(token, now)
    assert found.value.status_code == 401
    assert token not in str(found.value)


def test_a_token_is_read_offline_and_says_who_is_meant(setup):
    assert setup.reader.read(setup.token(), NOW + 1) == claims()
    assert is_token(setup.token())
    assert not is_token("tmk-abc")


def test_a_token_without_a_signature_is_refused(setup):
    token = setup.token()
    refused(setup, changed(token, header={"alg": "none"}, signature=""))
    refused(setup, changed(token, header={"alg": "None"}))
    refused(setup, changed(token, signature=""))


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(setup):
    header = part({"alg": "HS256", "kid": "k1", "typ": "at+jwt"})
    body = header + "." + setup.token().split(".")[1]
    mac = hmac.new(setup.key.public_key, body.encode(), hashlib.sha256).digest()
    refused(setup, f"{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}")


def test_a_token_signed_with_another_key_is_refused(setup):
    thief = TokenSigner(KeyPair(b"t" * 32), NETWORK)
    refused(setup, thief.sign("k1", claims()))


def test_a_token_that_names_no_announced_key_is_refused(setup):
    refused(setup, setup.signer.sign("k2", claims()))
    refused(setup, changed(setup.token(), header={"kid": None}))
    own = changed(setup.token(), header={"kid": "x", "jwk": {"kty": "OKP", "crv": "Ed25519"}})
    refused(setup, own)


def test_a_token_of_another_network_is_refused(setup):
    other = TokenSigner(AUTH, KeyPair(b"o" * 32).peer_id)
    key = other.announce("k9", now=NOW, lasts_s=1000, token_s=600)
    setup.reader.add(key)
    refused(setup, other.sign("k9", claims()))


def test_a_changed_token_is_refused(setup):
    refused(setup, changed(setup.token(), payload={"sub": "acc-2"}))
    refused(setup, changed(setup.token(), payload={"exp": NOW + 10**9}))


def test_a_token_of_another_type_or_issuer_or_without_a_claim_is_refused(setup):
    key = setup.signer._derived("k1")
    good = {
        "iss": "tinkex-mesh",
        "aud": str(NETWORK),
        "sub": "a",
        "sid": "s",
        "iat": NOW,
        "exp": NOW + 600,
    }

    def signed(payload, kind="at+jwt"):
        return jwt.encode(payload, key, algorithm="EdDSA", headers={"kid": "k1", "typ": kind})

    assert setup.reader.read(signed(good), NOW)
    refused(setup, signed(good, "JWT"))
    refused(setup, signed({**good, "iss": "passport-tinkex"}))
    for name in good:
        refused(setup, signed({key: value for key, value in good.items() if key != name}))
    refused(setup, signed({**good, "exp": [1]}))


@pytest.mark.parametrize("token", ["..", "a.b.c", "é.é.é", "\ud800..", "x" * 3000 + ".."])
def test_what_is_no_token_is_refused(setup, token):
    refused(setup, token)


def test_a_token_ends_with_its_time_or_its_signing_keys(setup):
    token = setup.token()
    assert setup.reader.read(token, NOW + 599)
    refused(setup, token, "expired", now=NOW + 600)
    late = setup.token(issued_at=NOW + 1500, expires_at=NOW + 2100)
    assert setup.reader.read(late, NOW + 1599)
    refused(setup, late, "signing key has ended", now=NOW + 1600)


def test_a_token_from_the_future_is_refused_beyond_a_minute_of_skew(setup):
    token = setup.token(issued_at=NOW + 60)
    assert setup.reader.read(token, NOW)
    refused(setup, token, "clocks", now=NOW - 1)


def test_a_revoked_signing_key_is_believed_no_more_even_for_tokens_read_before(setup):
    token = setup.token()
    assert setup.reader.read(token, NOW)
    setup.reader.revoke("k1")
    refused(setup, token, "signing key has ended")


def test_a_name_that_is_taken_stays_with_its_first_key(setup):
    thief = TokenSigner(KeyPair(b"t" * 32), NETWORK)
    setup.reader.add(thief.announce("k1", now=NOW, lasts_s=1000, token_s=600))
    refused(setup, thief.sign("k1", claims()))
    assert setup.reader.read(setup.token(), NOW)


def test_memory_of_tokens_is_bounded(setup, monkeypatch):
    monkeypatch.setattr(tokens, "REMEMBERED_TOKENS", 3)
    for number in range(10):
        setup.reader.read(setup.token(session_id=f"ses-{number}"), NOW)
    assert len(setup.reader._read) == 3


def test_each_auth_worker_and_name_has_a_key_of_its_own():
    one, other = TokenSigner(AUTH, NETWORK), TokenSigner(KeyPair(b"b" * 32), NETWORK)
    public = {
        signer.announce(kid, now=NOW, lasts_s=1, token_s=1).public_key
        for signer in (one, other)
        for kid in ("k1", "k2")
    }
    assert len(public) == 4
