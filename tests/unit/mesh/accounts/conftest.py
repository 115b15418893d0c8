"""A log in a list, and everything that folds it."""

from __future__ import annotations

import os
import random

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tinkex.errors import TinkerError
from tinkex.mesh.accounts.accounts import Accounts, KeyTerms
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import (
    KEY_NAME,
    PERSON,
    Person,
    decode_events,
    decode_network_events,
    decode_public_events,
    encode_events,
    network_form,
    public_form,
)
from tinkex.mesh.accounts.network import NetworkKnowledge
from tinkex.mesh.accounts.public import PublicAccounts
from tinkex.mesh.accounts.state import AccountsState
from tinkex.mesh.accounts.tokens import Claims, TokenSigner
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.network import check_network, found_network
from tinkex.mesh.trust.revocations import Revocations

NOW = 1_700_000_000.0
ROOT, AUTH = KeyPair(b"r" * 32), KeyPair(b"a" * 32)
ENCODED = found_network(ROOT, "home", members=[AUTH.peer_id])
NETWORK = check_network(ENCODED, network=ROOT.peer_id)


class MemoryVault:
    """A key an account, in a dict."""

    def __init__(self):
        self.keys = {}

    def seal(self, account_id, plaintext, field):
        key = self.keys.setdefault(account_id, os.urandom(32))
        nonce = os.urandom(12)
        return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, field.encode())

    def unseal(self, account_id, sealed, field):
        key = self.keys.get(account_id)
        if key is None:
            return None
        return ChaCha20Poly1305(key).decrypt(sealed[:12], sealed[12:], field.encode())


class Book:
    """Carries decisions out: into the log, then into the fold."""

    def __init__(self, **settings):
        self.config = AuthConfig(**settings)
        self.vault = MemoryVault()
        self.private, self.public_log = [], []
        self.state = AccountsState(self.vault.unseal)
        self.public = PublicAccounts(NETWORK.id)
        self.accounts = Accounts(self.state, self.config, random.Random(7).randbytes)
        self.network = NetworkKnowledge(NETWORK, ENCODED, Revocations())
        self.network_log = []
        self.signer = TokenSigner(AUTH, NETWORK.id)
        self.carry(self.signer.announce("k1", now=NOW, lasts_s=1000, token_s=600))

    def carry(self, *events):
        self.private.append(encode_events(events))
        for event in decode_events(self.private[-1]):
            self.state.apply(event)
        self.public_log.append(encode_events(public_form(events)))
        for event in decode_public_events(self.public_log[-1]):
            self.public.apply(event)
        self.network_log.append(encode_events(network_form(events)))
        for event in decode_network_events(self.network_log[-1]):
            self.network.apply(event)

    def do(self, decision):
        self.carry(*decision.events)
        if isinstance(decision.answer, TinkerError):
            raise decision.answer
        return decision.answer

    def account(self, email="ann@example.org"):
        self.accounts.check_free(email)
        account_id = self.accounts.new_account_id()
        person = msgspec.msgpack.encode(Person(email, "$hash"))
        sealed = self.vault.seal(account_id, person, PERSON)
        return self.do(self.accounts.register(account_id, sealed, NOW))

    def key(self, account_id, *, name="laptop", scopes=("infer",), now=NOW, **terms):
        wanted = KeyTerms(name=name, scopes=frozenset(scopes), **terms)
        sealed = self.vault.seal(account_id, name.encode(), KEY_NAME)
        return self.do(self.accounts.create_key(account_id, wanted, sealed, now))

    def log_in(self, account_id, now=NOW):
        account = self.state.accounts[account_id]
        return self.do(self.accounts.log_in(account, right=True, now=now))

    def token(self, session, now=NOW):
        claims = Claims(
            account_id=session.account_id,
            session_id=session.session_id,
            issued_at=now,
            expires_at=now + 600,
        )
        return self.signer.sign("k1", claims)

    def restored(self):
        """The state from its dump, encoded."""
        state = AccountsState(self.vault.unseal)
        for event in decode_events(encode_events(self.state.dump())):
            state.apply(event)
        return state

    def replayed(self):
        state = AccountsState(self.vault.unseal)
        for payload in self.private:
            for event in decode_events(payload):
                state.apply(event)
        return state


@pytest.fixture
def book():
    return Book()


@pytest.fixture
def make_book():
    return Book
