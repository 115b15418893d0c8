"""Buckets: who stays, who waits, who is nearest."""

from random import Random

import pytest
from mesh_dht import by_distance, some_nodes

from tinkex.mesh.dht.keys import ID_BITS
from tinkex.mesh.dht.routing import CHALLENGE_S, RoutingTable

K = 8
OWN, *OTHERS = some_nodes(400)


@pytest.fixture
def table():
    return RoutingTable(OWN.id, k=K)


def far(count, start=0):
    """Nodes of the farthest bucket."""
    half = [node for node in OTHERS if (node.id ^ OWN.id).bit_length() == ID_BITS]
    return half[start : start + count]


def test_table_never_holds_its_own_node(table):
    table.seen(OWN, 0.0)
    assert len(table) == 0


def test_nearest_are_found_as_by_sorting_all_that_are_known(table):
    for node in OTHERS:
        table.seen(node, 0.0)
    known = list(table)
    for target in (OWN.id, OWN.id ^ 1, *(node.id for node in OTHERS[:50])):
        for count in (1, 3, 16, 1000):
            assert table.closest(target, count) == by_distance(known, target)[:count]


def test_own_neighbours_are_all_known(table):
    for node in OTHERS:
        table.seen(node, 0.0)
    assert table.closest(OWN.id, K) == by_distance(OTHERS, OWN.id)[:K]


def test_full_bucket_keeps_the_old_who_answer_and_newcomers_wait(table):
    old, new = far(K), far(1, K)[0]
    for node in old:
        assert table.seen(node, 0.0) is None
    asked = table.seen(new, 1.0)
    assert asked == old[0]
    table.seen(asked, 1.1)
    assert new.id not in table
    assert old[0].id in table


def test_newcomer_takes_the_place_of_an_old_node_that_is_silent(table):
    old, new = far(K), far(1, K)[0]
    for node in old:
        table.seen(node, 0.0)
    table.failed(table.seen(new, 1.0).id, 2.0)
    assert new.id in table
    assert old[0].id not in table


def test_filling_a_bucket_with_newcomers_gets_nobody_out_who_lives(table):
    """An eclipse: thousands of strangers in a moment, and again after each challenge."""
    old = far(K)
    for node in old:
        table.seen(node, 0.0)
    challenges = 0
    for step in range(5):
        for node in far(180, K):
            asked = table.seen(node, step * CHALLENGE_S)
            if asked is not None:
                challenges += 1
                table.seen(asked, step * CHALLENGE_S)
    assert set(table) == set(old)
    assert challenges == 5


def test_least_recently_seen_is_asked_first(table):
    old = far(K + 1)
    for node in old[:K]:
        table.seen(node, 0.0)
    table.seen(old[0], 1.0)
    assert table.seen(old[K], 2.0) == old[1]


def test_address_of_a_node_is_the_one_that_was_seen_last(table):
    node = OTHERS[0]
    table.seen(node, 0.0)
    (again,) = [other for other in some_nodes(2) if other.id == node.id]
    table.seen(again, 1.0)
    assert list(table) == [again]


def test_lost_node_is_told_to_nobody_until_it_is_seen_again(table):
    table.seen(OTHERS[0], 0.0)
    table.failed(OTHERS[0].id, 1.0)
    assert table.closest(OTHERS[0].id, K) == []
    assert table.lost(2, 2.0) == [OTHERS[0]]
    table.seen(OTHERS[0], 3.0)
    assert table.closest(OTHERS[0].id, K) == [OTHERS[0]]
    assert table.lost(2, 4.0) == []


def test_lost_nodes_are_tried_in_turns_and_forgotten_after_an_hour(table):
    for node in OTHERS[:3]:
        table.seen(node, 0.0)
        table.failed(node.id, 0.0)
    turns = [table.lost(1, 1.0)[0] for _ in range(4)]
    assert turns == [*OTHERS[:3], OTHERS[0]]
    assert table.lost(3, 3601.0) == []


def test_failure_of_a_stranger_changes_nothing(table):
    table.failed(OTHERS[0].id, 0.0)
    assert table.lost(1, 0.0) == []


def test_nearness_counts_the_nodes_that_are_nearer(table):
    for node in OTHERS[:100]:
        table.seen(node, 0.0)
    assert table.is_near(OWN.id, 1)
    assert not table.is_near(OTHERS[0].id, 1)
    assert table.is_near(OTHERS[0].id, 1000)


def test_bucket_without_lookups_is_due_for_one(table):
    rng = Random(1)
    for node in OTHERS:
        table.seen(node, 0.0)
    assert table.stale_targets(99.0, idle_s=100, rng=rng) == []
    table.looked_up(far(1)[0].id, 50.0)
    due = table.stale_targets(100.0, idle_s=100, rng=rng)
    ranges = {(node.id ^ OWN.id).bit_length() for node in table}
    assert {(target ^ OWN.id).bit_length() for target in due} == ranges - {ID_BITS}


def test_who_joins_looks_into_every_range_beyond_its_neighbour(table):
    assert table.far_targets(Random(1)) == []
    for node in OTHERS:
        table.seen(node, 0.0)
    nearest = min((node.id ^ OWN.id).bit_length() for node in table)
    ranges = [(target ^ OWN.id).bit_length() for target in table.far_targets(Random(1))]
    assert ranges == list(range(nearest + 1, ID_BITS + 1))
