"""Tokens: what is signed here is read here until it ends; nothing else is."""

import base64
import hashlib
import hmac
import json
import stat

import jwt as library
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tinkex.server.accounts.tokens import (
    ISSUER,
    ROTATE_AFTER_S,
    Claims,
    InvalidTokenError,
    TokenIssuer,
)

CLAIMS = Claims(account_id="acct-1", email="a@b", key_id="key-1", logged_in_at=5.0)


def part(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def parts_of(token):
    return [
        json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        for text in token.split(".")[:2]
    ]


def test_token_says_what_the_official_sdk_reads(tokens, clock):
    token, expires = tokens.issue(CLAIMS)
    header, payload = parts_of(token)
    assert token.startswith("eyJ")
    assert header["alg"] == "EdDSA"
    assert header["kid"]
    assert payload["sub"] == "tml:organization_user:acct-1"
    assert (payload["org_id"], payload["email"]) == ("tinkex", "a@b")
    assert payload["iat"] == int(clock.now())
    assert payload["exp"] == int(clock.now()) + 3600 == expires
    assert payload["iss"].startswith("passport-")


def test_token_is_read_as_it_was_signed(tokens):
    assert tokens.read(tokens.issue(CLAIMS)[0]) == CLAIMS
    login = Claims(account_id="acct-1", email="", key_id=None, logged_in_at=5.0)
    assert tokens.read(tokens.issue(login)[0]) == login


def test_token_ends(tokens, clock):
    token, _ = tokens.issue(CLAIMS)
    clock.advance(3599)
    assert tokens.read(token) == CLAIMS
    clock.advance(1)
    for _ in range(2):
        with pytest.raises(InvalidTokenError, match="ended"):
            tokens.read(token)


def test_token_is_read_after_a_restart(tokens, tmp_path, clock):
    token, _ = tokens.issue(CLAIMS)
    again = TokenIssuer(tmp_path / "token_keys.json", clock=clock, lifetime_s=3600.0)
    assert again.read(token) == CLAIMS


def test_token_of_another_server_is_not_read(tokens, tmp_path, clock):
    tokens.issue(CLAIMS)
    other = TokenIssuer(tmp_path / "other.json", clock=clock, lifetime_s=3600.0)
    with pytest.raises(InvalidTokenError, match="signing key"):
        tokens.read(other.issue(CLAIMS)[0])


def forged(tokens, change):
    """A good token's header and payload, changed and signed by whoever can."""
    header, payload = parts_of(tokens.issue(CLAIMS)[0])
    return change(header, payload)


def unsigned(header, payload):
    return f"{part({**header, 'alg': 'none'})}.{part(payload)}."


def signed_with_hmac(header, payload):
    """The public key as an HMAC secret: what a library that trusts `alg` would take."""
    text = f"{part({**header, 'alg': 'HS256'})}.{part(payload)}"
    mac = hmac.new(header["kid"].encode(), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def signed_by_another(header, payload):
    key = Ed25519PrivateKey.generate()
    return library.encode(payload, key, algorithm="EdDSA", headers={"kid": header["kid"]})


def without_kid(_header, payload):
    return library.encode(payload, Ed25519PrivateKey.generate(), algorithm="EdDSA")


@pytest.mark.parametrize(
    "change", [unsigned, signed_with_hmac, signed_by_another, without_kid], ids=lambda f: f.__name__
)
def test_forged_token_is_not_read(tokens, change):
    with pytest.raises(InvalidTokenError):
        tokens.read(forged(tokens, change))


def test_changed_token_is_not_read(tokens):
    header, payload, signature = tokens.issue(CLAIMS)[0].split(".")
    claimed = parts_of(f"{header}.{payload}")[1]
    other = part({**claimed, "sub": "tml:organization_user:acct-2"})
    with pytest.raises(InvalidTokenError):
        tokens.read(f"{header}.{other}.{signature}")


@pytest.mark.parametrize("missing", ["exp", "iat", "sub", "org_id", "email", "iss", "auth_time"])
def test_token_that_leaves_something_out_is_not_read(tokens, missing):
    header, payload = parts_of(tokens.issue(CLAIMS)[0])
    key = tokens._keys[-1].private
    del payload[missing]
    token = library.encode(payload, key, algorithm="EdDSA", headers={"kid": header["kid"]})
    with pytest.raises(InvalidTokenError):
        tokens.read(token)


def test_token_of_another_issuer_is_not_read(tokens):
    header, payload = parts_of(tokens.issue(CLAIMS)[0])
    assert payload["iss"] == ISSUER
    payload["iss"] = "passport-else"
    key = tokens._keys[-1].private
    token = library.encode(payload, key, algorithm="EdDSA", headers={"kid": header["kid"]})
    with pytest.raises(InvalidTokenError):
        tokens.read(token)


@pytest.mark.parametrize("text", ["eyJ", "eyJ.eyJ.x", "eyJ" + "a" * 5000, "eyJ\x00", "eyJé.a.b"])
def test_garbage_is_not_read(tokens, text):
    tokens.issue(CLAIMS)
    with pytest.raises(InvalidTokenError):
        tokens.read(text)


def test_signing_key_is_renewed_and_tokens_of_the_old_one_live_on(tokens, clock):
    tokens.issue(CLAIMS)
    clock.advance(ROTATE_AFTER_S - 10)
    old, _ = tokens.issue(CLAIMS)
    clock.advance(10)
    new, _ = tokens.issue(CLAIMS)
    assert parts_of(old)[0]["kid"] != parts_of(new)[0]["kid"]
    assert tokens.read(old) == tokens.read(new) == CLAIMS


def test_signing_key_that_no_token_can_need_is_dropped(tokens, clock, tmp_path):
    for _ in range(4):
        tokens.issue(CLAIMS)
        clock.advance(ROTATE_AFTER_S)
    assert len(json.loads((tmp_path / "token_keys.json").read_text())["keys"]) == 2


def test_signing_keys_are_for_their_owner_alone(tokens, tmp_path):
    tokens.issue(CLAIMS)
    path = tmp_path / "token_keys.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.glob("*token*")] == ["token_keys.json"]
    private = json.loads(path.read_text())["keys"][0]["private"]
    assert private not in repr(tokens._keys)


def test_tokens_that_are_remembered_are_bounded(tokens, monkeypatch):
    monkeypatch.setattr("tinkex.server.accounts.tokens.REMEMBERED_TOKENS", 3)
    for number in range(6):
        claims = Claims(account_id=f"acct-{number}", email="", key_id=None, logged_in_at=1.0)
        tokens.read(tokens.issue(claims)[0])
    assert len(tokens._read) == 3
