"""Attacks on accounts: tokens, keys, sessions, guessing, quota."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
from dataclasses import dataclass
from types import SimpleNamespace

import jwt
from mesh_attacks.registry import Defence, Suite, nothing

from tinkex.errors import AuthenticationError, PermissionDeniedError, RateLimitError, TinkerError
from tinkex.mesh.accounts.accounts import Accounts
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import AccountClosed, KeyPublished, KeyRevoked, SessionEnded
from tinkex.mesh.accounts.lockout import LockOut, Subject
from tinkex.mesh.accounts.public import Caller, PublicAccounts
from tinkex.mesh.accounts.state import AccountsState
from tinkex.mesh.accounts.tokens import ISSUER, TYPE, Claims, TokenReader, TokenSigner
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.quota import LeaseGranted, LeaseSettled, QuotaLedger
from tinkex.mesh.usage import GatewayUsage, LeaseClosed, Settled
from tinkex.passwords import Passwords

NOW = 1_700_000_000.0
AUTH, NETWORK = KeyPair(b"a" * 32), KeyPair(b"n" * 32).peer_id
SIGNER = TokenSigner(AUTH, NETWORK)
KEY = SIGNER.announce("k1", now=NOW, lasts_s=1000, token_s=600)
CONFIG = AuthConfig(failures_per_account=3, failures_per_source=5)


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    reader: type = TokenReader
    public: type = PublicAccounts
    caller: type = Caller
    accounts: type = Accounts
    lockout: type = LockOut
    passwords: type = Passwords
    ledger: type = QuotaLedger


def refused(work, kinds=AuthenticationError):
    try:
        work()
    except kinds:
        return True
    return False


# --- access tokens --------------------------------------------------------------------------------


def reads(classes, token, now=NOW):
    reader = classes.reader(NETWORK)
    reader.add(KEY)
    return not refused(lambda: reader.read(token, now))


def claims(**changes):
    values = {"account_id": "a", "session_id": "s", "issued_at": NOW, "expires_at": NOW + 600}
    return Claims(**values | changes)


def signed(*, kind=TYPE, signer=SIGNER, **changes):
    payload = {
        "iss": ISSUER,
        "aud": str(NETWORK),
        "sub": "a",
        "sid": "s",
        "iat": NOW,
        "exp": NOW + 600,
    }
    headers = {"kid": "k1", "typ": kind}
    key = signer._derived("k1")
    return jwt.encode(payload | changes, key, algorithm="EdDSA", headers=headers)


def encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def forged(algorithm, sign):
    header = encoded({"alg": algorithm, "kid": "k1", "typ": TYPE})
    body = header + "." + signed().split(".")[1]
    return f"{body}.{base64.urlsafe_b64encode(sign(body.encode())).decode().rstrip('=')}"


def jwt_without_signature(classes):
    return not reads(classes, forged("none", lambda _: b""))


def jwt_with_the_public_key_as_secret(classes):
    return not reads(
        classes,
        forged("HS256", lambda body: hmac.new(KEY.public_key, body, hashlib.sha256).digest()),
    )


def jwt_of_another_key(classes):
    return not reads(classes, signed(signer=TokenSigner(KeyPair(b"t" * 32), NETWORK)))


def jwt_of_another_network(classes):
    return not reads(classes, signed(aud=str(AUTH.peer_id)))


def jwt_of_another_type(classes):
    return not reads(classes, signed(kind="JWT"))


def jwt_of_an_old_kid(classes):
    late = signed(iat=NOW + 1600, exp=NOW + 2200)
    return not reads(classes, late, now=NOW + 1601)


def jwt_of_a_revoked_kid(classes):
    reader, token = classes.reader(NETWORK), signed()
    reader.add(KEY)
    reader.read(token, NOW)  # what was believed before is not believed from memory
    reader.revoke("k1")
    return refused(lambda: reader.read(token, NOW))


def expired_jwt(classes):
    return not reads(classes, signed(), now=NOW + 600)


def jwt_of_the_future(classes):
    return not reads(classes, signed(iat=NOW + 300), now=NOW)


# --- keys and sessions at a gateway ---------------------------------------------------------------


def public(classes, *events, scopes=("infer", "read"), expires_at=None):
    view = classes.public(NETWORK)
    view.tokens.add(KEY)
    view.apply(
        KeyPublished(
            at=NOW,
            key_id="key-1",
            account_id="acc-1",
            key_hash=hashlib.sha256(b"tmk-1").digest(),
            scopes=scopes,
            expires_at=expires_at,
            token_cap=None,
        )
    )
    for event in events:
        view.apply(event)
    return view


def revoked_key(classes):
    view = public(classes, KeyRevoked(at=NOW, key_id="key-1"))
    return refused(lambda: view.verify("tmk-1", NOW))


def expired_key(classes):
    view = public(classes, expires_at=NOW + 5)
    return refused(lambda: view.verify("tmk-1", NOW + 5))


def token_of_an_ended_session(classes):
    view = public(classes, SessionEnded(at=NOW, session_id="s", tokens_until=NOW + 600))
    return refused(lambda: view.verify(signed(), NOW))


def key_of_a_closed_account(classes):
    view = public(classes, AccountClosed(at=NOW, account_id="acc-1"))
    return refused(lambda: view.verify("tmk-1", NOW))


def key_used_for_more_than_it_is_for(classes):
    caller = classes.caller(account_id="a", scopes=frozenset({"read"}))
    return refused(lambda: caller.need("infer"), PermissionDeniedError)


# --- sessions at an auth worker -------------------------------------------------------------------


def refresh_token_used_twice(classes):
    """The thief was first: its session has to end when the owner comes."""
    state = AccountsState(lambda *_: None)
    accounts = classes.accounts(state, CONFIG, random.Random(7).randbytes)

    def done(decision):
        for event in decision.events:
            state.apply(event)
        return decision.answer

    account_id = done(accounts.register("acc-1", b"", NOW))
    first = done(accounts.log_in(state.accounts[account_id], right=True, now=NOW))
    stolen = done(accounts.refresh(first.refresh_token, NOW))
    done(accounts.refresh(first.refresh_token, NOW))
    return isinstance(done(accounts.refresh(stolen.refresh_token, NOW)), TinkerError)


# --- guessing -------------------------------------------------------------------------------------


def guess(lock, email, source, times):
    """How many guesses were let through."""
    through = 0
    for _ in range(times):
        subjects = (lock.account(email()), lock.source(source()))
        if not refused(lambda: lock.check(subjects, NOW), RateLimitError):  # noqa: B023 - at once
            through += 1
            lock.failed(subjects, NOW)
    return through


def guesses_at_one_account_from_many_sources(classes):
    lock, number = classes.lockout(CONFIG, b"secret"), iter(range(100))
    return guess(lock, lambda: "ann", lambda: bytes([next(number)]), 20) == 3


def guesses_at_many_accounts_from_one_source(classes):
    lock, number = classes.lockout(CONFIG, b"secret"), iter(range(100))
    return guess(lock, lambda: f"user{next(number)}", lambda: b"thief", 20) == 5


def enumeration_by_timing(classes):
    """The work of an answer, not its time: how many hashes are computed."""
    passwords = classes.passwords(memory_kib=64)
    stored = passwords.hash("correct horse battery")
    hasher, verified = passwords._hasher, []
    passwords.__dict__["_hasher"] = SimpleNamespace(
        hash=hasher.hash,
        verify=lambda known, password: verified.append(1) or hasher.verify(known, password),
    )
    work = []
    for known in (stored, None):
        verified.clear()
        assert not passwords.matches(known, "wrong horse battery")
        work.append(len(verified))
    return work == [1, 1]


# --- quota ----------------------------------------------------------------------------------------


def lease(gateway, lease_id):
    return LeaseGranted(lease_id, gateway, "acc-1", "", 60, NOW, NOW + 30)


def quota_multiplied_by_gateways(classes):
    ledger = classes.ledger(lambda _: GatewayUsage())
    ledger.apply(lease(b"one", "l1"))
    another = lease(b"two", "l2")
    return refused(lambda: ledger.decide(another, least=60, quota=100, cap=None), RateLimitError)


def usage_claimed_lower_than_written(classes):
    usage = GatewayUsage()
    ledger = classes.ledger(lambda _: usage)
    ledger.apply(lease(b"one", "l1"))
    details = {"account_id": "acc-1", "key_id": "", "model": "m", "completion_tokens": 0}
    settled = Settled(lease_id="l1", at=NOW, request_id="r", prompt_tokens=50, **details)
    for event in (settled, LeaseClosed(lease_id="l1", at=NOW)):
        usage.apply(event, epoch=b"", sequence=0)
    ledger.apply(LeaseSettled("l1", 1, NOW))
    return ledger.spending("acc-1").tokens == 50


# --- each defence by itself -----------------------------------------------------------------------


def unverified(_self, token, _key):
    return jwt.decode(token, options={"verify_signature": False})


def unlimited(_self, value):
    return Subject(repr(value).encode(), 10**9)


def answer_at_once(self, stored, password):
    return stored is not None and Passwords.matches(self, stored, password)


def only_settled(self, opened):
    return self._use(opened).settled_tokens


def what_is_claimed(self, opened):
    return opened.granted.tokens if opened.claimed is None else opened.claimed


SIGNATURES = (jwt_without_signature, jwt_with_the_public_key_as_secret, jwt_of_another_key)
SUITE = Suite(
    "accounts",
    Classes(),
    (
        Defence("reader", "_signed", unverified, SIGNATURES),
        Defence("reader", "_check_place", nothing, (jwt_of_another_network,)),
        Defence("reader", "_check_type", nothing, (jwt_of_another_type,)),
        Defence("reader", "_check_key", nothing, (jwt_of_an_old_kid, jwt_of_a_revoked_kid)),
        Defence("reader", "_check_expiry", nothing, (expired_jwt,)),
        Defence("reader", "_check_begun", nothing, (jwt_of_the_future,)),
        Defence("public", "_check_not_revoked", nothing, (revoked_key,)),
        Defence("public", "_check_not_expired", nothing, (expired_key,)),
        Defence("public", "_check_goes_on", nothing, (token_of_an_ended_session,)),
        Defence("public", "_check_open", nothing, (key_of_a_closed_account,)),
        Defence("caller", "need", nothing, (key_used_for_more_than_it_is_for,)),
        Defence("accounts", "_was_used", lambda *_: False, (refresh_token_used_twice,)),
        Defence("lockout", "account", unlimited, (guesses_at_one_account_from_many_sources,)),
        Defence("lockout", "source", unlimited, (guesses_at_many_accounts_from_one_source,)),
        Defence("passwords", "matches", answer_at_once, (enumeration_by_timing,)),
        Defence("ledger", "_counted", only_settled, (quota_multiplied_by_gateways,)),
        Defence("ledger", "_counted", what_is_claimed, (usage_claimed_lower_than_written,)),
    ),
)
