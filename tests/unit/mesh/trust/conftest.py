"""Keys and a network of one root, without a passphrase to stretch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.network import check_network, found_network

NOW = 1_700_000_000.0


def key(number):
    return KeyPair(bytes([number]) * 32)


@pytest.fixture
def mesh():
    root, auth = key(1), key(2)
    encoded = found_network(root, "home", members=[auth.peer_id])
    info = check_network(encoded, network=root.peer_id)
    return SimpleNamespace(root=root, auth=auth, encoded=encoded, info=info, key=key, now=NOW)
