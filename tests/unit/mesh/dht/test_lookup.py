"""Lookups, answer by answer: whom they ask, when they stop, whom they do not follow."""

from random import Random

from mesh_dht import by_distance, some_nodes

from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.keys import topic_key
from tinkex.mesh.dht.lookup import Lookup

CONFIG = DhtConfig(k=8, alpha=3, quorum=2)
TARGET = topic_key("processor")
NODES = by_distance(some_nodes(300), TARGET)
OWN = some_nodes(1, seed=99)[0].id


def lookup(start, quorum=None, config=CONFIG):
    return Lookup(TARGET, start, own=OWN, config=config, rng=Random(1), quorum=quorum)


def finish(search, tell, *, dead=(), found=lambda _node: False, now=0.0):
    """Answer everything at once; gives the order in which nodes were asked."""
    asked = []
    while not search.done(now):
        for node in search.next(now):
            asked.append(node)
            if node in dead:
                search.failed(node.id)
            else:
                search.answered(node.id, tell(node), found=found(node))
    return asked


def everybody_knows_some(node):
    """Each knows 40 of the others, more of those that are near to it."""
    place = NODES.index(node)
    return by_distance([*NODES[max(place - 20, 0) : place + 20]], TARGET)[: CONFIG.k]


def test_nearest_nodes_are_reached_from_far_away():
    search = lookup(NODES[200:203])
    finish(search, everybody_knows_some)
    assert search.closest == NODES[:8]


def test_no_more_than_alpha_are_asked_at_once():
    search = lookup(NODES[:20])
    assert search.next(0.0) == NODES[:3]
    assert search.next(0.0) == []
    search.answered(NODES[0].id, [], found=False)
    assert search.next(0.0) == [NODES[3]]


def test_slow_request_makes_room_after_150_ms_and_its_answer_still_counts():
    search = lookup(NODES[:20])
    slow = search.next(0.0)
    assert search.wake_at(0.0) == 0.15
    assert search.next(0.149) == []
    assert search.next(0.15)[:3] == NODES[3:6]
    search.answered(slow[0].id, [], found=True)
    assert search.closest == [slow[0]]


def test_request_is_slow_at_the_moment_that_the_lookup_said_to_wake():
    """60 + 0.15 - 60 is a little less than 0.15: nobody would have woken it again."""
    search = lookup(NODES[:20])
    search.next(60.0)
    wake = search.wake_at(60.0)
    assert len(search.next(wake)) > 0
    assert search.wake_at(wake) > wake


def test_more_are_asked_at_once_where_many_are_silent():
    search = lookup(NODES[:20])
    assert [len(search.next(at)) for at in (0.0, 0.15, 0.3, 0.45)] == [3, 6, 8, 3]


def test_dead_nodes_do_not_hide_the_living():
    dead = set(NODES[:200:3])
    search = lookup(NODES[200:203])
    asked = finish(search, lambda node: NODES[max(NODES.index(node) - 25, 0) :][:8], dead=dead)
    assert search.closest[:5] == [node for node in NODES if node not in dead][:5]
    assert len(dead.intersection(asked)) > 3


def test_lookup_for_values_stops_when_enough_of_the_nearest_had_some():
    search = lookup(NODES[:20], quorum=2)
    asked = finish(search, lambda _node: [], found=lambda _node: True)
    assert asked[:2] == NODES[:2]
    assert len(asked) <= 3 + CONFIG.witnesses + 1


def test_witnesses_are_of_the_near_ones_and_not_the_same_each_time():
    seen = set()
    for seed in range(30):
        search = Lookup(TARGET, NODES, own=OWN, config=CONFIG, rng=Random(seed), quorum=2)
        seen |= set(finish(search, lambda _node: [], found=lambda _node: True))
    assert seen == set(NODES[: CONFIG.k])


def test_witness_that_is_dead_is_replaced():
    for seed in range(10):
        search = Lookup(TARGET, NODES[:8], own=OWN, config=CONFIG, rng=Random(seed), quorum=2)
        asked = finish(search, lambda _n: [], dead=set(NODES[4:8]), found=lambda _n: True)
        assert set(search.closest) >= set(NODES[:4]) or len(set(asked) - set(NODES[4:8])) >= 4


def test_value_of_a_far_node_does_not_stop_it_while_nearer_ones_are_open():
    search = lookup([NODES[5], NODES[6], NODES[7]], quorum=2)
    asked = search.next(0.0)
    for node in asked[1:]:
        search.answered(node.id, [], found=True)
    assert not search.done(0.0)
    search.answered(asked[0].id, NODES[:3], found=True)
    assert not search.done(0.0)
    assert search.next(0.0) == NODES[:3]


def test_lookup_of_nobody_ends_at_once():
    assert lookup([]).done(0.0)


def test_lookup_waits_for_slow_ones_when_there_is_nobody_else_but_not_for_ever():
    search = lookup(NODES[:2])
    search.next(0.0)
    assert not search.done(0.2)
    assert search.wake_at(0.2) == 0.5
    assert search.done(0.5)
    assert search.wake_at(0.5) is None


def test_node_is_asked_once_however_often_it_is_told():
    search = lookup(NODES[:6])
    asked = finish(search, lambda _node: NODES[:8])
    assert len(asked) == len(set(asked)) == 8


def test_own_node_is_never_asked():
    me = some_nodes(1, seed=99)
    assert lookup(me).done(0.0)


def test_of_a_million_contacts_in_an_answer_k_are_looked_at():
    search = lookup(NODES[100:101])
    search.next(0.0)
    search.answered(NODES[100].id, NODES[:100] * 10_000, found=False)
    assert len(search._candidates) == 1 + CONFIG.k


def test_teller_of_dead_contacts_is_followed_no_longer():
    """A liar makes up nodes that are nearer than any: without end, they would all be asked."""
    liar, *honest = NODES[30:40]
    made_up = NODES[:8]
    search = lookup([liar, *honest])
    asked = finish(search, lambda node: made_up if node is liar else honest, dead=set(made_up))
    assert len(set(asked) & set(made_up)) <= 6
    assert set(search.closest) <= {liar, *honest}


def test_contact_that_a_liar_told_is_asked_if_somebody_else_tells_of_it():
    liar, witness = NODES[30], NODES[299]
    living = NODES[7]
    search = lookup([liar, witness])
    tells = {liar.id: NODES[:8], witness.id: [living]}
    finish(search, lambda node: tells.get(node.id, []), dead=set(NODES[:7]))
    assert living in search.closest


def test_ever_nearer_contacts_that_answer_are_left_in_the_end():
    chain = by_distance(some_nodes(2000, seed=7), TARGET)[::-1]
    search = lookup(chain[:1])
    asked = finish(search, lambda node: chain[chain.index(node) + 1 :][:1])
    assert len(asked) == 8 * CONFIG.k


def test_hops_count_the_nodes_up_to_the_first_value():
    search = lookup([NODES[50]], quorum=1)
    tells = {NODES[50].id: [NODES[20]], NODES[20].id: [NODES[3]]}
    finish(search, lambda node: tells.get(node.id, []), found=lambda node: node is NODES[3])
    assert search.hops == 3


def test_nodes_that_disagree_have_more_of_them_asked():
    def asked_when(new):
        search = lookup(NODES[:20], quorum=2)
        count = 0
        while not search.done(0.0):
            for node in search.next(0.0):
                count += 1
                search.answered(node.id, [], found=True, new=new)
        return count

    assert asked_when(new=False) <= 5
    assert asked_when(new=True) == CONFIG.k
