from __future__ import annotations

import pytest

from tinkex.errors import AuthenticationError, PermissionDeniedError
from tinkex.mesh.accounts import public as public_module
from tinkex.mesh.accounts.events import (
    SessionEnded,
    SigningKeyRevoked,
    decode_public_events,
    encode_events,
)
from tinkex.mesh.accounts.public import PublicAccounts
from tinkex.mesh.identity import KeyPair

NOW = 1_700_000_000.0
ROOT = KeyPair(b"r" * 32)


def make_key(book, account_id, **terms):
    return book.key(account_id, **terms)


def refused(book, credential, words, now=NOW):
    with pytest.raises(AuthenticationError, match=words) as found:
        book.public.verify(credential, now)
    assert not credential or credential not in str(found.value)


def test_a_key_is_verified_offline_with_its_scopes(book):
    account = book.account()
    made = make_key(book, account)
    caller = book.public.verify(made.key, NOW)
    assert (caller.account_id, caller.key_id) == (account, made.created.key_id)
    assert (caller.scopes, caller.session_id) == ({"infer"}, "")
    caller.need("infer")
    with pytest.raises(PermissionDeniedError, match="'publish'"):
        caller.need("publish")


def test_an_access_token_is_good_for_every_scope(book):
    session = book.log_in(book.account())
    caller = book.public.verify(book.token(session), NOW)
    assert (caller.session_id, caller.key_id) == (session.session_id, "")
    for scope in ("infer", "read", "publish"):
        caller.need(scope)


def test_unknown_expired_and_revoked_keys_are_told_apart_to_who_holds_them(book):
    account = book.account()
    made = make_key(book, account, expires_in_s=60)
    refused(book, "tmk-unknown", "not known")
    refused(book, "", "not known")
    refused(book, made.key[:-1], "not known")
    refused(book, made.key, "expired", now=NOW + 60)
    book.do(book.accounts.revoke_key(account, made.created.key_id, NOW))
    refused(book, made.key, "revoked")


def test_tokens_of_an_ended_session_and_everything_of_a_closed_account_are_refused(book):
    account = book.account()
    made = make_key(book, account)
    session, other = book.log_in(account), book.log_in(account)
    book.do(book.accounts.log_out(session.session_id, NOW))
    refused(book, book.token(session), "session has ended")
    assert book.public.verify(book.token(other), NOW)
    book.do(book.accounts.close(book.state.accounts[account], right=True, now=NOW))
    refused(book, book.token(other), "account was closed")
    refused(book, made.key, "account was closed")


def test_the_feed_may_come_in_any_order_and_twice(book):
    account = book.account()
    made = make_key(book, account)
    book.do(book.accounts.revoke_key(account, made.created.key_id, NOW))
    session = book.log_in(account)
    book.do(book.accounts.log_out(session.session_id, NOW))
    token = book.token(session)
    events = [each for payload in book.public_log for each in decode_public_events(payload)]
    backwards = PublicAccounts(ROOT.peer_id)
    assert not any(backwards.knows(event) for event in events)
    for event in [*reversed(events), *events]:
        backwards.apply(event)
    assert all(backwards.knows(event) for event in events)
    for credential, words in ((made.key, "revoked"), (token, "session has ended")):
        with pytest.raises(AuthenticationError, match=words):
            backwards.verify(credential, NOW)


def test_nothing_personal_and_no_secret_is_in_the_public_feed(book):
    account = book.account("ann@example.org")
    made = make_key(book, account, name="anns laptop")
    session = book.log_in(account)
    feed = b"".join(book.public_log)
    for secret in (b"ann", b"$hash", made.key.encode(), session.refresh_token.encode()):
        assert secret not in feed
    assert b"ann" not in b"".join(book.private)
    assert made.key not in repr(made)
    assert session.refresh_token not in repr(session)


def test_revoked_signing_keys_reach_gateways(book):
    event = SigningKeyRevoked(at=NOW, kid="k1")
    token = book.token(book.log_in(book.account()))
    assert not book.public.knows(event)
    book.carry(event)
    assert book.public.knows(event)
    refused(book, token, "signing key has ended")
    assert set(book.state.revoked_signing_keys) == {"k1"}


def test_a_dump_comes_to_the_same_view(book):
    account = book.account()
    made, other = make_key(book, account), make_key(book, account)
    book.do(book.accounts.revoke_key(account, made.created.key_id, NOW))
    session = book.log_in(account)
    book.do(book.accounts.log_out(session.session_id, NOW))
    gone = book.account("bob@example.org")
    book.do(book.accounts.close(book.state.accounts[gone], right=True, now=NOW))
    book.carry(SigningKeyRevoked(at=NOW, kid="k9"))
    again = PublicAccounts(ROOT.peer_id)
    for event in decode_public_events(encode_events(book.public.events())):
        again.apply(event)
    assert list(again.events()) == list(book.public.events())
    assert again.verify(other.key, NOW).account_id == account
    with pytest.raises(AuthenticationError, match="revoked"):
        again.verify(made.key, NOW)


def test_sessions_that_ended_long_ago_are_forgotten(book, monkeypatch):
    monkeypatch.setattr(public_module, "_SWEEP_FROM", 10)
    view = PublicAccounts(ROOT.peer_id)
    for number in range(100):
        view.apply(
            SessionEnded(at=float(number), session_id=str(number), tokens_until=number + 5.0)
        )
    assert len(view._ended_sessions) <= 20
    assert "99" in view._ended_sessions
