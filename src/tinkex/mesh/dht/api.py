"""What nodes of the DHT ask one another: the messages, and who may call what.

Every certified peer may look up and put (what it may put, its record's checks say). A guest, who
has an invitation and wants to join, gets the auth workers' records and nothing else: it needs to
find one, and the network's other members and their addresses are no stranger's business.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated

import msgspec

from tinkex.mesh.dht.keys import Node
from tinkex.mesh.dht.records import MAX_TOPIC_CHARACTERS
from tinkex.mesh.dht.storage import Verdict
from tinkex.mesh.identity import PEER_ID_BYTES, PeerId
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.service import Call, Service, callable_by
from tinkex.mesh.transport.base import Contact

SERVING = frozenset({Role.AUTH, Role.GATEWAY, Role.PROCESSOR, Role.BOOTSTRAP})
"""Roles that hold records for others. Clients come and go, and are many: they only ask."""

MAX_RECORDS = 256
MAX_PUT = 64
"""Records in one request: no frame of it is near the longest."""
MAX_TOLD = 20
MAX_AUTHS = 16

# The lengths are checked before anything is made of what is too long.
Address = Annotated[str, msgspec.Meta(max_length=128)]
Addresses = Annotated[tuple[Address, ...], msgspec.Meta(max_length=8)]
Key = Annotated[bytes, msgspec.Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TOPIC_CHARACTERS)]


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node, and where it was last heard of."""

    peer: Key
    addresses: Addresses


Nodes = Annotated[tuple[Told, ...], msgspec.Meta(max_length=MAX_TOLD)]


class FindNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for the nodes nearest to an id."""

    target: Key
    addresses: Addresses = ()
    """Where the caller is reached, if it serves the DHT as well."""


class FoundNodes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The nearest that a node knows."""

    nodes: Nodes


class FindValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask for the records of a topic, and for the nodes nearest to it."""

    topic: Topic
    addresses: Addresses = ()


class FoundValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node holds of a topic, withdrawals included, and the nearest nodes that it knows."""

    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_RECORDS)]
    nodes: Nodes


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Put records of the caller's own."""

    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_PUT)]
    addresses: Addresses = ()


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of each record."""

    verdicts: Annotated[tuple[Verdict, ...], msgspec.Meta(max_length=MAX_PUT)]


class HandOver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask a neighbour for the records that the caller should hold as well."""

    addresses: Addresses = ()


class Held(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record, and how many seconds longer its holder keeps it."""

    record: bytes
    left_s: float


class HandedOver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the caller should hold, those nearest to it first."""

    records: Annotated[tuple[Held, ...], msgspec.Meta(max_length=MAX_RECORDS)]


class FindAuth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ask where auth workers are."""


class FoundAuth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records of the topic `auth`."""

    records: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_AUTHS)]


class DhtApi(Service):
    """Implemented by every node of the DHT."""

    service = "dht"

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_find_node(self, request: FindNode, call: Call) -> FoundNodes:
        """Tell the nearest nodes."""

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_find_value(self, request: FindValue, call: Call) -> FoundValue:
        """Tell what is held of a topic, and the nearest nodes."""

    @callable_by(CERTIFIED)
    @abstractmethod
    async def rpc_store(self, request: Store, call: Call) -> Stored:
        """Take the caller's records in, or say why not."""

    @callable_by(SERVING)
    @abstractmethod
    async def rpc_hand_over(self, request: HandOver, call: Call) -> HandedOver:
        """Tell a node that came what it should hold."""

    @callable_by(CERTIFIED, guests=True)
    @abstractmethod
    async def rpc_find_auth(self, request: FindAuth, call: Call) -> FoundAuth:
        """Tell where auth workers are."""


def told(nodes: Iterable[Node]) -> tuple[Told, ...]:
    """Write nodes as they travel."""
    return tuple(Told(node.contact.peer_id.raw, node.contact.addresses) for node in nodes)


def nodes_of(found: Iterable[Told]) -> list[Node]:
    """Read nodes that somebody told of; those without an address cannot be asked."""
    return [Node(Contact(PeerId(one.peer), one.addresses)) for one in found if one.addresses]
