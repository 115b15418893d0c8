"""Attacks on the DHT: records, what is held, the routing table, lookups."""

import zlib
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from types import SimpleNamespace

import msgspec
from mesh_attacks.registry import Suite, nothing, one_each
from mesh_dht import DATE, believed, by_distance, some_nodes
from mesh_trust import TestNetwork

from tinkex.errors import TrustError
from tinkex.mesh.dht.api import FoundValue
from tinkex.mesh.dht.config import DhtConfig, StorageLimits
from tinkex.mesh.dht.keys import ID_BITS, topic_key
from tinkex.mesh.dht.lookup import Lookup
from tinkex.mesh.dht.records import RECORD, Offer, RecordChecker, make_record
from tinkex.mesh.dht.routing import CHALLENGE_S, RoutingTable
from tinkex.mesh.dht.search import Searches
from tinkex.mesh.dht.service import DhtService
from tinkex.mesh.dht.storage import RecordStorage, Verdict
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.testing import VirtualClock

TRUST = TestNetwork(DATE)
OTHER_NETWORK = TestNetwork(DATE)
PROCESSOR = TRUST.peer(Role.PROCESSOR)
SHUT_OUT = TRUST.peer(Role.PROCESSOR)
TRUST.revoked.add(SHUT_OUT.peer_id)
CONFIG = DhtConfig(
    k=8,
    quorum=2,
    limits=StorageLimits(records=60, per_topic=20, per_publisher=5, puts_per_s=1.0, put_burst=40),
)
OWN, *OTHERS = some_nodes(300)
ANYBODY = OTHERS[0]


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    checker: type = RecordChecker
    table: type = RoutingTable
    storage: type = RecordStorage
    lookup: type = Lookup
    service: type = DhtService
    searches: type = Searches


def believes(classes, encoded, *, topic=None, at=0.0):
    checker = classes.checker(
        network=TRUST.network, roots=lambda: TRUST.roots, is_revoked=TRUST.is_revoked
    )
    try:
        checker.check(encoded, now=DATE + at, topic=topic)
    except TrustError:
        return False
    return True


def record(peer=PROCESSOR, topic="processor", offer=None, **changes):
    values = {
        "addresses": ("tls:127.0.0.1:4433",),
        "certificate": peer.encoded,
        "sequence": 1,
        "expires_at": DATE + 45,
        "ttl_s": 45.0,
    } | changes
    return make_record(peer.key_pair, topic=topic, offer=offer or Offer(), **values)


# --- records --------------------------------------------------------------------------------------


def fake_gateway(classes):
    return not believes(classes, record(topic="gateway"))


def forged(classes):
    body, _ = msgspec.msgpack.decode(zlib.decompress(record()))
    signature = KeyPair.generate().sign(RECORD, body)
    return not believes(classes, zlib.compress(msgspec.msgpack.encode([body, signature])))


def borrowed_certificate(classes):
    other = TRUST.peer(Role.PROCESSOR)
    return not believes(classes, record(certificate=other.encoded))


def another_network(classes):
    return not believes(classes, record(OTHER_NETWORK.peer(Role.PROCESSOR)))


def expired(classes):
    return not believes(classes, record(), at=106)


def long_lived(classes):
    return not believes(classes, record(expires_at=DATE + 86_400, ttl_s=86_400))


def oversized(classes):
    plain = zlib.decompress(record(offer=Offer(models=("x" * 300,))))
    return not believes(classes, zlib.compress(plain, 0))


def senseless_numbers(classes):
    return not believes(classes, record(offer=Offer(load=float("nan"))))


def shut_out(classes):
    return not believes(classes, record(SHUT_OUT))


def another_topic(classes):
    return not believes(classes, record(), topic="model:a")


# --- storage --------------------------------------------------------------------------------------


def storage_of(classes, known=()):
    table = classes.table(OWN.id, k=CONFIG.k)
    for node in known:
        table.seen(node, 0.0)
    return classes.storage(table, config=CONFIG)


def put(storage, one, *, sender=None, at=0.0):
    sender = sender or one.contact.peer_id
    fast = storage.refuses_fast(sender, at)
    return fast or storage.put(one, sender=sender, now=DATE + at, monotonic=at)


def replayed(classes):
    storage = storage_of(classes)
    put(storage, believed(ANYBODY, sequence=2))
    put(storage, believed(ANYBODY, sequence=1))
    return [r.sequence for r in storage.held("processor", 0.0)] == [2]


def put_by_another(classes):
    storage = storage_of(classes)
    put(storage, believed(ANYBODY), sender=OTHERS[1].contact.peer_id)
    return storage.held("processor", 0.0) == []


def thousands_of_puts(classes):
    storage = storage_of(classes)
    verdicts = [put(storage, believed(ANYBODY, sequence=n)) for n in range(2000)]
    return verdicts.count(Verdict.STORED) <= CONFIG.limits.put_burst


def many_topics_of_one(classes):
    storage = storage_of(classes)
    for n in range(30):
        put(storage, believed(ANYBODY, f"adapter:{n}"))
    return len(storage) <= CONFIG.limits.per_publisher


def flooded_topic(classes):
    storage = storage_of(classes)
    for node in OTHERS[:100]:
        put(storage, believed(node))
    return len(storage) <= CONFIG.limits.per_topic


def put_far_away(classes):
    far = [node for node in OTHERS if (node.id ^ OWN.id).bit_length() == ID_BITS]
    storage = storage_of(classes, far)
    topic = next(
        name
        for name in (f"model:{n}" for n in range(100))
        if (topic_key(name) ^ OWN.id).bit_length() == ID_BITS
    )
    return put(storage, believed(ANYBODY, topic)) is Verdict.FAR


# --- routing and lookups --------------------------------------------------------------------------


def eclipse(classes):
    """Fill a bucket again and again: nobody who answers is put out."""
    table = classes.table(OWN.id, k=CONFIG.k)
    far = [node for node in OTHERS if (node.id ^ OWN.id).bit_length() == ID_BITS]
    for node in far[: CONFIG.k]:
        table.seen(node, 0.0)
    for step in range(4):
        for node in far[CONFIG.k :]:
            asked = table.seen(node, step * CHALLENGE_S)
            if asked is not None:
                table.seen(asked, step * CHALLENGE_S)
    return set(table) == set(far[: CONFIG.k])


def looked_up(classes, start, tell, dead=()):
    target = topic_key("processor")
    lookup = classes.lookup(target, start, own=OWN.id, config=CONFIG, rng=Random(1))
    asked = []
    while not lookup.done(0.0):
        for node in lookup.next(0.0):
            asked.append(node)
            if node in dead:
                lookup.failed(node.id)
            else:
                lookup.answered(node.id, tell(node), found=False)
    return lookup, asked


NEAREST = by_distance(OTHERS, topic_key("processor"))


def made_up_contacts(classes):
    liar, *honest = NEAREST[30:60]
    lies = NEAREST[:8]
    _, asked = looked_up(classes, [liar, *honest], lambda n: lies if n is liar else honest, lies)
    return len(set(asked) & set(lies)) < len(lies)


def million_contacts(classes):
    lookup = classes.lookup(0, NEAREST[:1], own=OWN.id, config=CONFIG, rng=Random(1))
    lookup.next(0.0)
    lookup.answered(NEAREST[0].id, NEAREST * 300, found=False)
    return len(lookup._candidates) <= 1 + CONFIG.k


def endless_path(classes):
    chain = by_distance(some_nodes(400, seed=7), topic_key("processor"))[::-1]
    after = dict(pairwise(chain))
    _, asked = looked_up(classes, chain[:1], lambda n: [after[n]] if n in after else [])
    return len(asked) < len(chain)


def conspiracy_of_the_nearest(classes):
    """Those who took the keys nearest to a topic show one record, and hide another."""
    target = topic_key("processor")
    lookup = classes.lookup(
        target, NEAREST[:20], own=OWN.id, config=CONFIG, rng=Random(1), quorum=CONFIG.quorum
    )
    while asked := lookup.next(0.0):
        for node in set(asked) & set(NEAREST[: CONFIG.quorum]):
            lookup.answered(node.id, [], found=True)
    return not lookup.done(0.0)


def client_as_contact(classes):
    """A client is cheap to be and soon gone: nobody routes by it."""
    met = []
    service = classes.service(
        None, None, None, clock=VirtualClock(), k=8, met=met.append, auths=None, counts={}
    )
    client = TRUST.peer(Role.CLIENT)
    call = SimpleNamespace(peer=client.peer_id, role=Role.CLIENT)
    service._admit(call, ("tls:127.0.0.1:1",))
    return met == []


def answer_full_of_forgeries(classes):
    """Each costs a signature's check: a liar's are not all checked."""
    checked = []

    def check(encoded, **_):
        checked.append(encoded)
        raise TrustError("no")

    searches = object.__new__(classes.searches)
    searches._checker = SimpleNamespace(check=check)
    searches._clock = VirtualClock()
    searches._counts = {"refused_records": 0}
    searches._believed(FoundValue((b"x",) * 256, ()), "processor")
    return len(checked) < 20


# --- defences -------------------------------------------------------------------------------------


def evict_the_old(_self, bucket, node, _now):
    del bucket.nodes[next(iter(bucket.nodes))]
    bucket.nodes[node.id] = node


def believe_another_network(self, encoded, now):
    try:
        return RecordChecker._checked_certificate(self, encoded, now)
    except TrustError:
        other = RecordChecker(
            network=OTHER_NETWORK.network,
            roots=lambda: OTHER_NETWORK.roots,
            is_revoked=OTHER_NETWORK.is_revoked,
        )
        return other._checked_certificate(encoded, now)


def check_all(self, reply, topic):
    for encoded in reply.records:
        try:
            self._checker.check(encoded, now=0.0, topic=topic)
        except TrustError:
            continue


def admit_all(self, call, addresses):
    self._met((call, addresses))


SUITE = Suite(
    "dht",
    Classes(),
    one_each(
        {
            fake_gateway: ("checker", "_check_role", nothing),
            forged: ("checker", "_check_signature", nothing),
            borrowed_certificate: ("checker", "_check_owner", nothing),
            another_network: ("checker", "_checked_certificate", believe_another_network),
            expired: ("checker", "_check_expiry", nothing),
            long_lived: ("checker", "_check_lifetime", nothing),
            oversized: ("checker", "_check_size", nothing),
            senseless_numbers: ("checker", "_check_values", nothing),
            shut_out: ("checker", "check_not_revoked", nothing),
            another_topic: ("checker", "_check_topic", nothing),
            replayed: ("storage", "_refuses_stale", nothing),
            put_by_another: ("storage", "_refuses_foreign", nothing),
            thousands_of_puts: ("storage", "refuses_fast", nothing),
            many_topics_of_one: ("storage", "_refuses_many", nothing),
            flooded_topic: ("storage", "_refuses_full", nothing),
            put_far_away: ("storage", "_refuses_far", nothing),
            eclipse: ("table", "_wait", evict_the_old),
            made_up_contacts: ("lookup", "_is_truthful", lambda *_: True),
            million_contacts: ("lookup", "_sane", lambda _self, told: told),
            endless_path: ("lookup", "_most", lambda _self: 10**9),
            conspiracy_of_the_nearest: ("lookup", "_have_testified", lambda *_: True),
            client_as_contact: ("service", "_admit", admit_all),
            answer_full_of_forgeries: ("searches", "_believed", check_all),
        }
    ),
)
