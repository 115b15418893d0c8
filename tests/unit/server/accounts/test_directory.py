"""Accounts and keys: what can be made, what cannot, and what is kept of it."""

import sqlite3
import stat
from contextlib import closing

import pytest

from tinkex.errors import InputError, NotFoundError
from tinkex.server.accounts.caller import MEMBER_SCOPES, SCOPES
from tinkex.server.accounts.directory import KeyTerms, terms_within
from tinkex.server.accounts.keys import given_key, key_number_of
from tinkex.server.accounts.store import AccountStore

FIRST = "tml-first-0123456789"
SECOND = "tml-second-012345678"
PASSWORD = "correct horse battery"
ANYTHING = KeyTerms()


@pytest.fixture
def ada(directory):
    return directory.create_account("Ada", email="Ada@Example.org ")


def test_account_is_found_again_as_it_was_made(directory, ada):
    assert directory.account(ada.account_id) == ada
    assert directory.accounts() == [ada]
    assert (ada.email, ada.role, ada.scopes) == ("ada@example.org", "member", MEMBER_SCOPES)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": " "}, "name"),
        ({"name": "a" * 201}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"email": "nobody"}, "e-mail"),
        ({"email": "a b@c"}, "e-mail"),
        ({"role": "king"}, "king.*admin, member"),
        ({"password": "short", "email": "a@b"}, "12 to 1024"),
        ({"password": "x" * 1025, "email": "a@b"}, "12 to 1024"),
        ({"password": PASSWORD}, "needs an e-mail"),
    ],
)
def test_bad_account_is_refused_saying_which_field(directory, fields, words):
    with pytest.raises(InputError, match=words):
        directory.create_account(**{"name": "Ada", **fields})
    assert directory.accounts() == []


def test_address_is_taken_once_whatever_its_case(directory, ada):
    with pytest.raises(InputError, match="already"):
        directory.create_account("Another", email="ADA@example.org")


def test_key_has_256_random_bits_and_is_kept_nowhere(directory, ada, empty_database):
    made = directory.create_key(ada.account_id, "laptop", ANYTHING)
    assert made.secret.startswith("tml-")
    assert len(made.secret) == len("tml-") + 43  # 32 bytes in base64
    assert made.secret not in repr(made)
    assert made.key.prefix == made.secret[:12]
    assert directory.key(made.key.key_id) == made.key
    with closing(sqlite3.connect(empty_database)) as connection:
        dump = "\n".join(connection.iterdump())
    assert made.secret not in dump
    assert made.secret[12:] not in dump
    assert made.secret != directory.create_key(ada.account_id, "laptop", ANYTHING).secret


def test_number_of_a_key_is_exact_in_json(directory, ada):
    key = directory.create_key(ada.account_id, "laptop", ANYTHING).key
    assert 0 <= key_number_of(key.key_id) < 2**53


def test_key_has_the_terms_it_was_given(directory, ada, clock):
    terms = KeyTerms(scopes=frozenset({"read"}), lifetime_s=60.0, max_tokens=1000, max_seconds=2.5)
    key = directory.create_key(ada.account_id, "script", terms, note="for cron").key
    assert key.scopes == {"read"}
    assert key.expires_at == clock.now() + 60
    assert (key.max_tokens, key.max_seconds, key.note) == (1000, 2.5, "for cron")
    assert key.is_capped


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"scopes": frozenset({"fly"})}, "fly.*admin, read, sample, train"),
        ({"scopes": frozenset()}, "at least one"),
        ({"lifetime_s": 0.0}, "lifetime_s"),
        ({"lifetime_s": 1e12}, "ten years"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_seconds": float("nan")}, "max_seconds"),
    ],
)
def test_impossible_terms_are_refused(terms, words):
    with pytest.raises(InputError, match=words):
        KeyTerms(**terms)


def test_members_key_cannot_have_the_scope_admin(directory, ada):
    with pytest.raises(InputError, match="role admin"):
        directory.create_key(ada.account_id, "x", KeyTerms(scopes=frozenset({"admin"})))


def test_key_of_another_account_is_not_there(directory, ada):
    bob = directory.create_account("Bob")
    key = directory.create_key(ada.account_id, "laptop", ANYTHING).key
    found = []
    for key_id, account_id in ((key.key_id, bob.account_id), ("key-0", ada.account_id)):
        with pytest.raises(NotFoundError) as caught:
            directory.revoke(key_id, account_id=account_id)
        found.append(str(caught.value).replace(key_id, "ID"))
    assert found[0] == found[1]
    assert directory.key(key.key_id).revoked_at is None


def test_revoking_twice_keeps_the_first_moment(directory, ada, clock):
    key = directory.create_key(ada.account_id, "laptop", ANYTHING).key
    first = directory.revoke(key.key_id)
    clock.advance(5)
    assert directory.revoke(key.key_id) == first


def test_operators_keys_are_accounts_with_the_ids_they_had_before(directory):
    directory.enter_given([given_key(FIRST), given_key(SECOND)])
    first, second = directory.accounts()
    assert first.account_id == "key-" + given_key(FIRST).digest.hex()[:16]
    assert (first.role, second.role) == ("admin", "member")
    assert [one.key_id for one in directory.keys(None)] == [first.account_id, second.account_id]
    assert directory.keys(second.account_id)[0].caller(second).scopes == MEMBER_SCOPES
    assert directory.keys(first.account_id)[0].caller(first).scopes == SCOPES


def test_short_operators_key_shows_nothing_of_itself(directory):
    directory.enter_given([given_key(FIRST)])
    assert directory.keys()[0].prefix == "tml-"


def test_key_that_the_operator_took_away_ends_and_one_given_back_works(directory, clock):
    directory.enter_given([given_key(FIRST), given_key(SECOND)])
    directory.enter_given([given_key(FIRST)])
    gone = directory.key("key-" + given_key(SECOND).digest.hex()[:16])
    assert (gone.given, gone.ended(clock.now())) == (False, "revoked")
    directory.enter_given([given_key(FIRST), given_key(SECOND)])
    assert directory.key(gone.key_id).ended(clock.now()) is None


def test_key_in_the_operators_file_is_ended_there(directory):
    directory.enter_given([given_key(FIRST)])
    with pytest.raises(InputError, match="key file"):
        directory.revoke(directory.keys()[0].key_id)


def test_role_that_an_account_was_given_outlives_a_start(directory):
    directory.enter_given([given_key(FIRST), given_key(SECOND)])
    second = directory.accounts()[1].account_id
    directory.set_role(second, "admin")
    directory.enter_given([given_key(FIRST), given_key(SECOND)])
    assert directory.account(second).role == "admin"


def test_last_admin_stays_one(directory, ada):
    directory.enter_given([given_key(FIRST)])
    admin = directory.accounts()[0].account_id
    if admin == ada.account_id:
        admin = directory.accounts()[1].account_id
    for change in (
        lambda: directory.set_role(admin, "member"),
        lambda: directory.set_disabled(admin, disabled=True),
    ):
        with pytest.raises(InputError, match="only admin"):
            change()
    directory.set_role(ada.account_id, "admin")
    assert directory.set_role(admin, "member").role == "member"


def test_right_password_logs_in_and_a_wrong_one_or_a_strangers_does_not(directory, ada):
    assert directory.log_in("ada@example.org", PASSWORD) is None
    directory.set_password(ada.account_id, PASSWORD)
    assert directory.log_in(" ADA@example.org", PASSWORD).account_id == ada.account_id
    assert directory.log_in("ada@example.org", PASSWORD + "x") is None
    assert directory.log_in("nobody@example.org", PASSWORD) is None
    directory.set_disabled(ada.account_id, disabled=True)
    assert directory.log_in("ada@example.org", PASSWORD) is None


def test_stranger_costs_as_many_hashes_as_a_wrong_password(directory, ada, monkeypatch):
    directory.set_password(ada.account_id, PASSWORD)
    directory.log_in("nobody@example.org", "warm up")  # makes the hash that strangers meet
    hasher, compared = directory._passwords._hasher, []
    verify = type(hasher).verify

    def counted(self, stored, password):
        compared.append(stored.split("$")[:4])
        return verify(self, stored, password)

    monkeypatch.setattr(type(hasher), "verify", counted)
    directory.log_in("ada@example.org", "wrong")
    directory.log_in("nobody@example.org", "wrong")
    assert len(compared) == 2
    assert compared[0] == compared[1], "the same algorithm at the same cost"
    assert compared[0][1] == "argon2id"


def test_password_is_kept_as_a_hash_of_argon2id_with_64_mib():
    from tinkex.passwords import MEMORY_KIB, Passwords

    assert MEMORY_KIB == 65536
    stored = Passwords(memory_kib=64).hash(PASSWORD)
    assert stored.startswith("$argon2id$v=19$m=64,t=3,p=4$")


def test_password_hash_is_in_no_repr(directory, ada):
    account = directory.set_password(ada.account_id, PASSWORD)
    assert account.password_hash not in repr(account)


def test_database_is_for_its_owner_alone(store, empty_database):
    assert stat.S_IMODE(empty_database.stat().st_mode) == 0o600


def test_what_another_process_writes_counts_at_once(directory, ada, empty_database, clock):
    key = directory.create_key(ada.account_id, "laptop", ANYTHING).key
    other = AccountStore(empty_database)
    other.open()
    other.change_key(key.key_id, revoked_at=1.0)
    other.close()
    assert directory.key(key.key_id).ended(clock.now()) == "revoked"


@pytest.mark.parametrize("limit", [{"max_tokens": 5}, {"max_seconds": 1.0}, {"lifetime_s": 9.0}])
def test_key_with_limits_makes_no_keys(directory, ada, limit):
    asking = directory.create_key(ada.account_id, "limited", KeyTerms(**limit)).key
    with pytest.raises(InputError, match="makes no keys"):
        terms_within(asking, ANYTHING, asking.scopes)


def test_key_makes_no_key_that_may_do_more_than_itself(directory, ada):
    terms = KeyTerms(scopes=frozenset({"read", "sample"}))
    asking = directory.create_key(ada.account_id, "reader", terms).key
    assert terms_within(asking, ANYTHING, asking.scopes).scopes == {"read", "sample"}
    with pytest.raises(InputError, match="train"):
        terms_within(asking, KeyTerms(scopes=frozenset({"train"})), asking.scopes)
