"""What a node takes in for others: near, few, fresh, not for long."""

import pytest
from mesh_dht import DATE, believed, by_distance, some_nodes

from tinkex.mesh.dht.config import DhtConfig, StorageLimits
from tinkex.mesh.dht.keys import topic_key
from tinkex.mesh.dht.routing import RoutingTable
from tinkex.mesh.dht.storage import RecordStorage, Verdict

OWN, *OTHERS = some_nodes(300)
A, B = OTHERS[:2]
LIMITS = StorageLimits(records=50, per_topic=10, per_publisher=5, puts_per_s=1.0, put_burst=20)
CONFIG = DhtConfig(k=8, limits=LIMITS)


@pytest.fixture
def table():
    return RoutingTable(OWN.id, k=CONFIG.k)


@pytest.fixture
def storage(table):
    return RecordStorage(table, config=CONFIG)


def put(storage, record, *, sender=None, at=0.0, skew=0.0):
    sender = sender or record.contact.peer_id
    fast = storage.refuses_fast(sender, at)
    return fast or storage.put(record, sender=sender, now=DATE + at + skew, monotonic=at)


def test_record_is_held_for_its_time(storage):
    record = believed(A)
    assert put(storage, record) is Verdict.STORED
    assert storage.held("processor", 44.9) == [record]
    assert storage.held("gateway", 44.9) == []
    assert storage.held("processor", 45.0) == []


@pytest.mark.parametrize("skew", [-59, 30])
def test_wrong_clock_does_not_make_a_record_stay_longer(storage, skew):
    put(storage, believed(A, expires_at=DATE + 45 + skew))
    assert len(storage.held("processor", 44.0)) == 1
    assert storage.held("processor", 46.0) == []


def test_later_record_takes_the_place_of_an_earlier_one(storage):
    put(storage, believed(A, sequence=1))
    assert put(storage, believed(A, sequence=2, load=3.0), at=10) is Verdict.STORED
    assert [r.load for r in storage.held("processor", 50)] == [3.0]


def test_replayed_record_is_refused(storage):
    put(storage, believed(A, sequence=2))
    assert put(storage, believed(A, sequence=1)) is Verdict.STALE
    assert put(storage, believed(A, sequence=2, load=9.0)) is Verdict.STALE
    assert [r.sequence for r in storage.held("processor", 0)] == [2]


def test_replay_is_refused_after_the_later_record_has_expired(storage):
    put(storage, believed(A, sequence=2))
    assert storage.held("processor", 60) == []
    late = believed(A, sequence=1, expires_at=DATE + 105)
    assert put(storage, late, at=60) is Verdict.STALE


def test_same_record_again_is_taken_and_does_not_live_longer(storage):
    put(storage, believed(A))
    assert put(storage, believed(A), at=30) is Verdict.STORED
    assert storage.held("processor", 46) == []


def test_withdrawn_record_cannot_be_brought_back_by_a_replay(storage):
    put(storage, believed(A, sequence=1))
    gone = believed(A, sequence=2, withdrawn=True, expires_at=DATE + 55)
    put(storage, gone, at=10)
    for at in (10, 60, 110):
        assert put(storage, believed(A, sequence=1), at=at) is Verdict.STALE
    assert storage.held("processor", 100) == [gone]


def test_everything_of_a_record_is_forgotten_in_the_end(storage):
    put(storage, believed(A))
    storage.expire(46)
    assert len(storage) == 1
    storage.expire(200)
    assert len(storage) == 0
    assert storage._published == {}


def test_record_put_by_another_peer_is_refused(storage):
    assert put(storage, believed(A), sender=B.contact.peer_id) is Verdict.FOREIGN


def test_peer_that_puts_thousands_is_stopped_at_its_rate(storage):
    taken = [put(storage, believed(A, sequence=n)) for n in range(1000)]
    assert taken.count(Verdict.TOO_FAST) == 1000 - LIMITS.put_burst
    assert put(storage, believed(B)) is Verdict.STORED
    assert put(storage, believed(A, sequence=2000), at=1) is Verdict.STORED
    assert put(storage, believed(A, sequence=2001), at=1) is Verdict.TOO_FAST


def test_publisher_has_few_records_on_one_node(storage):
    verdicts = [put(storage, believed(A, f"adapter:{n}")) for n in range(8)]
    assert verdicts == [Verdict.STORED] * 5 + [Verdict.TOO_MANY] * 3
    assert put(storage, believed(A, "adapter:0", sequence=2)) is Verdict.STORED


def test_topic_has_few_records_and_its_holders_may_renew(storage):
    verdicts = [put(storage, believed(node)) for node in OTHERS[:12]]
    assert verdicts == [Verdict.STORED] * 10 + [Verdict.FULL] * 2
    assert put(storage, believed(A, sequence=2)) is Verdict.STORED


def test_node_holds_a_bounded_number_of_records(storage):
    for n, node in enumerate(OTHERS[:100]):
        put(storage, believed(node, f"model:{n}"))
    assert len(storage) == LIMITS.records


def test_only_what_is_near_is_held(storage, table):
    for node in OTHERS:
        table.seen(node, 0.0)
    everybody = [OWN, *OTHERS]
    for n in range(60):
        topic = f"model:{n}"
        rank = by_distance(everybody, topic_key(topic)).index(OWN)
        verdict = put(storage, believed(OTHERS[n], topic))
        if rank < CONFIG.k:
            assert verdict is Verdict.STORED
        elif rank > 12 * CONFIG.k:
            assert verdict is Verdict.FAR


def test_allowances_of_strangers_do_not_pile_up(storage, monkeypatch):
    monkeypatch.setattr("tinkex.mesh.dht.storage._PUTTERS", 100)
    for node in OTHERS:
        storage.refuses_fast(node.contact.peer_id, 0.0)
    assert len(storage._allowances) == 100


def take_over(storage, record, *, left_s=30.0, at=0.0):
    return storage.take_over(record, left_s=left_s, now=DATE + at, monotonic=at)


def test_record_that_is_handed_on_lives_no_longer_for_it(storage):
    assert take_over(storage, believed(A), left_s=5.0) is Verdict.STORED
    assert len(storage.held("processor", 4.9)) == 1
    assert storage.held("processor", 5.0) == []


def test_neighbours_word_makes_no_record_live_longer_than_its_own_time(storage):
    take_over(storage, believed(A), left_s=1e9)
    assert storage.held("processor", 45.0) == []


def test_nothing_is_held_of_a_record_that_is_over_at_the_neighbours(storage):
    for node, left in zip(OTHERS, (0.0, -5.0, float("-inf"), float("nan")), strict=False):
        assert take_over(storage, believed(node), left_s=left) is Verdict.STALE
    assert storage.held("processor", 0.0) == []


def test_handed_record_does_not_displace_a_later_one(storage):
    put(storage, believed(A, sequence=2))
    assert take_over(storage, believed(A, sequence=1)) is Verdict.STALE


def test_neighbour_cannot_fill_a_node_either(storage):
    for n in range(300):
        take_over(storage, believed(A, f"adapter:{n}"))
    assert len(storage) == LIMITS.per_publisher
    for node in OTHERS:
        take_over(storage, believed(node))
    assert len(storage) <= LIMITS.records


def test_node_that_came_is_given_what_lies_near_it_nearest_first(table):
    storage = RecordStorage(table, config=DhtConfig(k=8))
    topics = [f"model:{n}" for n in range(40)]
    for number, topic in enumerate(topics):
        put(storage, believed(OTHERS[number], topic))
    for node in OTHERS:
        table.seen(node, 0.0)
    newcomer = by_distance(OTHERS, topic_key(topics[0]))[0]
    given = storage.due_to(newcomer.id, count=100, monotonic=1.0)
    near = [t for t in topics if newcomer in by_distance([*table, newcomer], topic_key(t))[:8]]
    assert {record.topic for record, _ in given} == set(near)
    order = [topic_key(record.topic) ^ newcomer.id for record, _ in given]
    assert order == sorted(order)
    assert {left for _, left in given} == {44.0}
    assert len(storage.due_to(newcomer.id, count=1, monotonic=1.0)) == 1
    assert storage.due_to(newcomer.id, count=100, monotonic=50.0) == []
