"""Nodes and checked records for tests of the DHT's pure parts."""

from random import Random

from tinkex.mesh.dht.keys import Node
from tinkex.mesh.dht.records import Record
from tinkex.mesh.identity import PeerId
from tinkex.mesh.transport.base import Contact

DATE = 1_700_000_000.0


def some_nodes(count, seed=0):
    rng = Random(seed)
    return [Node(Contact(PeerId(rng.randbytes(32)), (f"memory:{n}",))) for n in range(count)]


def by_distance(nodes, target):
    return sorted(nodes, key=lambda node: node.id ^ target)


def believed(publisher, topic="processor", **changes):
    """A record as if it had been checked."""
    values = {
        "certificate": None,
        "models": (),
        "adapters": (),
        "load": 0.0,
        "free_slots": 0,
        "sequence": 1,
        "expires_at": DATE + 45,
        "ttl_s": 45.0,
        "withdrawn": False,
    } | changes
    encoded = repr(sorted(values.items())).encode()
    return Record(topic=topic, contact=publisher.contact, encoded=encoded, **values)
