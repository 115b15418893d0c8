"""A network's keys for tests: a root, an auth worker, certified peers of any role; a receipt."""

from dataclasses import dataclass, field

import msgspec

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import (
    Chain,
    RoleCertificate,
    check_certificate,
    make_certificate,
    make_grant,
)
from tinkex.mesh.trust.receipts import ReceiptBody

CERTIFICATE_S = 86_400.0


def receipt_body(gateway, client, /, **fields):
    """Return what a gateway signs of a request; `fields` are those that matter to a test."""
    others = {
        "request_id": "r",
        "account_id": "a",
        "key_id": "k",
        "model": "m",
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "cached_tokens": 0,
        "output": bytes(32),
        "reproducible": True,
        "seed": 1,
        "at": 10.0,
        "epoch": bytes(16),
        "sequence": 9,
    }
    peers = {"gateway": gateway.peer_id.raw, "client": client.peer_id.raw}
    return ReceiptBody(**{**others, **peers, **fields})


@dataclass(frozen=True)
class TestPeer:
    """A key pair and its certificate."""

    __test__ = False

    key_pair: KeyPair
    encoded: bytes
    certificate: RoleCertificate

    @property
    def peer_id(self):
        return self.key_pair.peer_id


@dataclass
class TestNetwork:
    """One root; `now` dates every certificate. `revoked` is read by `is_revoked`."""

    __test__ = False

    now: float
    root: KeyPair = field(default_factory=KeyPair.generate)
    revoked: set = field(default_factory=set)

    def __post_init__(self):
        self.network = self.root.peer_id
        self.roots = frozenset({self.root.peer_id})
        self.auth = self._auth()

    def is_revoked(self, peer_id):
        return peer_id in self.revoked

    def peer(self, role, key_pair=None):
        """Certify a peer for a role, as an auth worker does when somebody joins."""
        if role is Role.AUTH:
            return self._auth(key_pair)
        grant = self._grant(role)
        issuer = msgspec.msgpack.decode(self.auth.encoded, type=Chain)
        return self._certified(self.auth.key_pair, grant, key_pair, issuer)

    def _auth(self, key_pair=None):
        return self._certified(self.root, self._grant(Role.AUTH), key_pair, None)

    def _grant(self, role):
        return make_grant(
            self.root,
            network=self.network,
            key=KeyPair.generate().peer_id,
            role=role,
            join_before=self.now + CERTIFICATE_S,
            certificate_s=CERTIFICATE_S,
        )

    def _certified(self, signer, grant, key_pair, issuer):
        key_pair = key_pair or KeyPair.generate()
        encoded = make_certificate(
            signer,
            grant=grant,
            peer=key_pair.peer_id,
            not_before=self.now,
            expires_at=self.now + CERTIFICATE_S,
            issuer=issuer,
        )
        checked = check_certificate(encoded, network=self.network, roots=self.roots, now=self.now)
        return TestPeer(key_pair, encoded, checked)
