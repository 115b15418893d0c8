from __future__ import annotations

import msgspec
import pytest

from tinkex.errors import (
    AuthenticationError,
    ConflictError,
    InputError,
    NotFoundError,
    PermissionDeniedError,
)
from tinkex.mesh.accounts.accounts import LISTED_ENDED, KeyTerms
from tinkex.mesh.accounts.events import (
    AccountClosed,
    KeyCreated,
    KeyRevoked,
    NetworkChanged,
    PeerJoined,
    PeerRevoked,
    Person,
    QuotaSet,
    SessionRefreshed,
    SessionStarted,
    SigningKeyRevoked,
    encode_events,
)
from tinkex.mesh.accounts.state import REMEMBERED_REFRESH_TOKENS, Key
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.quota import LeaseSettled
from tinkex.mesh.trust.network import found_network

NOW = 1_700_000_000.0


def terms(**changes):
    return KeyTerms(**{"name": "laptop", "scopes": frozenset({"infer"}), **changes})


def test_an_account_is_opened_with_the_default_quota(make_book):
    book = make_book(default_quota_tokens=123)
    account = book.state.accounts[book.account()]
    assert account.quota_tokens == 123
    assert (account.email, account.password_hash) == ("ann@example.org", "$hash")
    assert book.state.with_email("ann@example.org") is account
    assert "ann" not in repr(account) + repr(Person("ann@example.org", "$hash"))


def test_an_address_with_an_account_is_refused_and_nothing_is_written(book):
    book.account()
    written = len(book.private)
    with pytest.raises(ConflictError, match="cannot be registered") as found:
        book.account()
    assert "ann@" not in str(found.value)
    assert len(book.private) == written


def test_registration_can_be_closed(make_book):
    make_book().accounts.check_open()
    with pytest.raises(PermissionDeniedError):
        make_book(registration_open=False).accounts.check_open()


def test_unknown_wrong_and_closed_are_refused_in_the_same_words(book):
    account = book.state.accounts[book.account()]
    answers = [
        book.accounts.log_in(None, right=False, now=NOW).answer,
        book.accounts.log_in(account, right=False, now=NOW).answer,
    ]
    book.do(book.accounts.close(account, right=True, now=NOW))
    answers.append(book.accounts.log_in(account, right=True, now=NOW).answer)
    assert len({(type(one), str(one)) for one in answers}) == 1
    assert isinstance(answers[0], AuthenticationError)


def test_a_session_is_refreshed_again_and_again_until_it_ends(make_book):
    book = make_book(session_s=1000)
    session = book.log_in(book.account())
    assert session.expires_at == NOW + 1000
    for now in (NOW + 1, NOW + 2, NOW + 999):
        previous, session = session, book.do(book.accounts.refresh(session.refresh_token, now))
        assert session.session_id == previous.session_id
        assert session.refresh_token != previous.refresh_token
        assert session.expires_at == NOW + 1000
    with pytest.raises(AuthenticationError, match="ended"):
        book.do(book.accounts.refresh(session.refresh_token, NOW + 1000))


def test_a_refresh_token_used_twice_ends_the_whole_session(book):
    first = book.log_in(book.account())
    second = book.do(book.accounts.refresh(first.refresh_token, NOW + 1))
    with pytest.raises(AuthenticationError, match="used before"):
        book.do(book.accounts.refresh(first.refresh_token, NOW + 2))
    with pytest.raises(AuthenticationError, match="ended"):
        book.do(book.accounts.refresh(second.refresh_token, NOW + 3))
    with pytest.raises(AuthenticationError, match="session has ended"):
        book.public.verify(book.token(second), NOW + 3)


def test_reuse_is_noticed_after_a_replay_and_far_back(book):
    first = session = book.log_in(book.account())
    for number in range(REMEMBERED_REFRESH_TOKENS):
        session = book.do(book.accounts.refresh(session.refresh_token, NOW + number))
    assert book.replayed().sessions[session.session_id].used
    with pytest.raises(AuthenticationError, match="used before"):
        book.do(book.accounts.refresh(first.refresh_token, NOW + 99))


def test_a_token_older_than_what_is_remembered_is_refused_and_ends_nothing(book):
    first = session = book.log_in(book.account())
    for number in range(REMEMBERED_REFRESH_TOKENS + 1):
        session = book.do(book.accounts.refresh(session.refresh_token, NOW + number))
    with pytest.raises(AuthenticationError, match="ended"):
        book.do(book.accounts.refresh(first.refresh_token, NOW + 99))
    assert book.do(book.accounts.refresh(session.refresh_token, NOW + 99))


def test_a_guessed_refresh_token_ends_nobodys_session(book):
    session = book.log_in(book.account())
    for token in ("", "tmr-", "x", f"tmr-{session.session_id}.guess", "tmr-a.b.c"):
        with pytest.raises(AuthenticationError, match="ended"):
            book.do(book.accounts.refresh(token, NOW))
    assert book.do(book.accounts.refresh(session.refresh_token, NOW))


def test_logging_out_ends_the_session_alone_and_is_harmless_twice(book):
    account = book.account()
    one, other = book.log_in(account), book.log_in(account)
    book.do(book.accounts.log_out(one.session_id, NOW))
    assert book.accounts.log_out(one.session_id, NOW).events == ()
    with pytest.raises(AuthenticationError):
        book.do(book.accounts.refresh(one.refresh_token, NOW))
    assert book.do(book.accounts.refresh(other.refresh_token, NOW))


def test_one_login_too_many_ends_the_oldest_session(make_book):
    book = make_book(max_sessions=2)
    account = book.account()
    first, second, third = (book.log_in(account, NOW + n) for n in range(3))
    assert set(book.state.sessions) == {second.session_id, third.session_id}
    with pytest.raises(AuthenticationError):
        book.public.verify(book.token(first), NOW + 3)


def test_sessions_that_are_over_are_forgotten_at_the_next_login(make_book):
    book = make_book(session_s=10)
    account = book.account()
    book.log_in(account)
    latest = book.log_in(account, NOW + 11)
    assert set(book.state.sessions) == {latest.session_id}


def test_a_key_is_shown_once_and_only_its_hash_is_kept(book):
    account = book.account()
    made = book.key(account, expires_in_s=60, token_cap=9)
    assert made.key.startswith("tmk-")
    assert len(made.key) >= 4 + 43
    (key,) = book.accounts.keys(account, NOW)
    assert (book.state.key_name(key), key.created.prefix) == ("laptop", made.key[:12])
    assert (key.created.expires_at, key.created.token_cap) == (NOW + 60, 9)
    assert made.key.encode() not in b"".join(book.private)


def test_keys_are_listed_newest_first_and_revoked_for_good(book):
    account = book.account()
    old, new = (
        book.key(account, name=name, now=NOW + at).created.key_id
        for at, name in enumerate(("old", "new"))
    )
    assert [book.state.key_name(key) for key in book.accounts.keys(account, NOW)] == ["new", "old"]
    book.do(book.accounts.revoke_key(account, old, NOW + 5))
    assert book.accounts.revoke_key(account, old, NOW + 6).events == ()
    assert book.state.key(old).revoked_at == NOW + 5
    assert book.state.key(new).revoked_at is None


def test_keys_that_have_ended_are_listed_so_far_as_a_message_holds_them(book):
    """A job that makes a key for each of its runs, and revokes it, has thousands in the end."""
    account = book.account()
    live = book.key(account).created.key_id
    known = book.state.accounts[account].keys
    for number in range(LISTED_ENDED + 5):
        created = msgspec.structs.replace(
            known[live].created, key_id=f"key-{number}", at=NOW + number
        )
        known[created.key_id] = Key(created, revoked_at=NOW + number)
    listed = [key.created.key_id for key in book.accounts.keys(account, NOW)]
    assert len(listed) == LISTED_ENDED + 1
    assert (listed[0], listed[-1]) == (f"key-{LISTED_ENDED + 4}", live)


def test_nobody_revokes_anothers_key(book):
    ann, bob = book.account(), book.account("bob@example.org")
    made = book.key(ann)
    with pytest.raises(NotFoundError):
        book.accounts.revoke_key(bob, made.created.key_id, NOW)


def test_an_account_has_so_many_keys_and_no_more(make_book):
    book = make_book(max_keys=1)
    account = book.account()
    made = book.key(account)
    with pytest.raises(ConflictError, match="revoke one"):
        book.key(account)
    book.do(book.accounts.revoke_key(account, made.created.key_id, NOW))
    assert book.key(account)


def test_a_key_that_has_expired_makes_room_for_another(make_book):
    book = make_book(max_keys=1)
    account = book.account()
    book.key(account, expires_in_s=60.0)
    with pytest.raises(ConflictError, match="revoke one"):
        book.key(account, now=NOW + 59)
    assert book.key(account, now=NOW + 60)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"scopes": frozenset()}, "scopes"),
        ({"scopes": frozenset({"infer", "admin"})}, "scopes"),
        ({"expires_in_s": 0.0}, "expires_in_s"),
        ({"expires_in_s": float("nan")}, "expires_in_s"),
        ({"expires_in_s": 1e12}, "expires_in_s"),
        ({"token_cap": 0}, "token_cap"),
    ],
)
def test_terms_that_make_no_sense_are_refused_by_name(book, changes, field):
    with pytest.raises(InputError, match=field):
        book.key(book.account(), **changes)


def test_a_closed_account_is_erased_and_its_address_free(book):
    account_id = book.account()
    book.log_in(account_id)
    book.key(account_id)
    account = book.state.accounts[account_id]
    with pytest.raises(AuthenticationError, match="password"):
        book.do(book.accounts.close(account, right=False, now=NOW))
    book.do(book.accounts.close(account, right=True, now=NOW))
    del book.vault.keys[account_id]
    assert (account.email, account.password_hash, account.keys) == ("", "", {})
    assert book.state.sessions == {}
    again = book.replayed()
    assert again.accounts[account_id].email == ""
    assert again.open_account(account_id) is None
    assert book.account() != account_id
    with pytest.raises(AuthenticationError, match="closed"):
        book.accounts.create_key(account_id, terms(), b"", NOW)
    with pytest.raises(AuthenticationError, match="closed"):
        book.accounts.keys(account_id, NOW)


@pytest.mark.parametrize("again", ["replayed", "restored"])
def test_a_replay_of_the_log_and_a_dump_give_the_same_state(book, again):
    ann, bob = book.account(), book.account("bob@example.org")
    key = book.key(ann).created
    book.key(ann, name="other")
    session = book.log_in(ann)
    for _ in range(3):
        session = book.do(book.accounts.refresh(session.refresh_token, NOW))
    book.do(book.accounts.revoke_key(ann, key.key_id, NOW))
    book.carry(QuotaSet(at=NOW, account_id=ann, quota_tokens=5))
    book.do(book.accounts.close(book.state.accounts[bob], right=True, now=NOW))
    book.carry(
        PeerJoined(at=NOW, grant_key=b"g", peer=b"a", certificate=b"c"),
        PeerRevoked(at=NOW, peer=b"p" * 32),
        SigningKeyRevoked(at=NOW, kid="k1"),
        NetworkChanged(
            at=NOW,
            network=found_network(KeyPair(b"r" * 32), "home", members=[KeyPair(b"a" * 32).peer_id]),
        ),
        LeaseSettled("lease", 1, NOW),
    )
    same = getattr(book, again)()
    assert encode_events(same.dump()) == encode_events(book.state.dump())
    assert same.accounts[ann].email == "ann@example.org"
    assert same.with_email("bob@example.org") is None
    assert same.key(key.key_id).revoked_at == NOW
    assert same.sessions[session.session_id].used == book.state.sessions[session.session_id].used
    assert b"ann@" not in encode_events(book.state.dump())


def test_a_person_whose_key_comes_late_is_found_when_it_is_here(book):
    account_id = book.account()
    book.key(account_id)
    keys, book.vault.keys = book.vault.keys, {}
    late = book.replayed()
    assert late.with_email("ann@example.org") is None
    assert late.key_name(next(iter(late.accounts[account_id].keys.values()))) == ""
    book.vault.keys = keys
    assert late.with_email("ann@example.org").account_id == account_id


def test_events_about_what_is_not_there_change_nothing(book):
    book.carry(
        AccountClosed(at=NOW, account_id="none"),
        QuotaSet(at=NOW, account_id="none", quota_tokens=1),
        SessionStarted(
            at=NOW, session_id="s", account_id="none", refresh_hash=b"", expires_at=NOW + 1
        ),
        SessionRefreshed(at=NOW, session_id="none", refresh_hash=b""),
        KeyRevoked(at=NOW, key_id="none"),
        KeyCreated(
            at=NOW,
            key_id="k",
            account_id="none",
            key_hash=b"",
            sealed_name=b"",
            prefix="",
            scopes=(),
            expires_at=None,
            token_cap=None,
        ),
    )
    assert (book.state.accounts, book.state.sessions) == ({}, {})


def test_an_invitation_is_used_by_the_first_peer_that_the_log_names(book):
    for peer in (b"a", b"b"):
        book.carry(PeerJoined(at=NOW, grant_key=b"g", peer=peer, certificate=b"c"))
    assert book.state.joined[b"g"].peer == b"a"
