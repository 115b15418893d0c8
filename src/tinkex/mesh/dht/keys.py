"""Where nodes and topics lie: 256-bit numbers, and the exclusive-or distance between them.

A node's id is the hash of its public key, never chosen: to lie near a topic, an attacker must grind
keys, and each key that any node takes in needs a certificate, which costs an invitation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tinkex.mesh.identity import PeerId
from tinkex.mesh.transport.base import Contact

ID_BITS = 256


def node_id(peer: PeerId) -> int:
    """Where a peer lies."""
    return _hashed(b"node\x00" + peer.raw)


def topic_key(topic: str) -> int:
    """Where the records of a topic lie."""
    return _hashed(b"topic\x00" + topic.encode())


def _hashed(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest(), "big")


@dataclass(frozen=True, slots=True)
class Node:
    """A peer as the DHT sees it: where it lies, and how it is reached."""

    contact: Contact
    id: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", node_id(self.contact.peer_id))
