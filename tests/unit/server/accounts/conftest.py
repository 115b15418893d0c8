"""An account store on a database of the test's own, a clock to move, and cheap passwords."""

import pytest

from tinkex.passwords import Passwords
from tinkex.server.accounts.authenticator import Authenticator
from tinkex.server.accounts.directory import Directory
from tinkex.server.accounts.store import AccountStore
from tinkex.server.accounts.tokens import TokenIssuer


@pytest.fixture
def store(empty_database):
    store = AccountStore(empty_database)
    store.open()
    yield store
    store.close()


@pytest.fixture
def directory(store, clock):
    return Directory(store, clock, Passwords(memory_kib=64))


@pytest.fixture
def tokens(tmp_path, clock):
    return TokenIssuer(tmp_path / "token_keys.json", clock=clock, lifetime_s=3600.0)


@pytest.fixture
def authenticator(store, tokens, clock):
    return Authenticator(store, tokens, clock)
