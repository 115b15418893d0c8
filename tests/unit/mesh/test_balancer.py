"""Choosing processors: what must always hold, and how evenly many gateways spread their load."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkex.mesh.balancer import Balancer, BalancerConfig, Offer, Shortage, Wanted
from tinkex.mesh.identity import PeerId

MODEL = "tinkex/sprout"
WANTED = Wanted(model=MODEL)
CONFIG = BalancerConfig()


def peer(number: int) -> PeerId:
    return PeerId(number.to_bytes(32, "big"))


def offer(number: int, **changes) -> Offer:
    given = {
        "models": {MODEL: "r1"},
        "fingerprint": "avx2",
        "slots": 4,
        "free_slots": 4,
        "waiting": 0,
        "expires_at": 100.0,
    }
    return Offer(peer(number), **(given | changes))


def balancer(*offers: Offer, seed: int = 1, config: BalancerConfig = CONFIG) -> Balancer:
    made = Balancer(config, random.Random(seed))
    for one in offers:
        made.heard(one)
    return made


def chosen(made: Balancer, wanted: Wanted = WANTED, *, now: float = 0.0, times: int = 40) -> set:
    found = set()
    for _ in range(times):
        choice = made.choose(wanted, now)
        assert isinstance(choice, Offer), choice
        found.add(choice.peer)
    return found


def test_a_model_that_nobody_runs_is_unknown():
    assert balancer(offer(1)).choose(Wanted(model="other"), 0) is Shortage.UNKNOWN


def test_an_announcement_counts_no_longer_than_it_says():
    made = balancer(offer(1, expires_at=10.0))
    assert chosen(made, now=9.99) == {peer(1)}
    assert made.choose(WANTED, 10.0) is Shortage.UNKNOWN
    assert made.offers(10.0) == []


def test_a_processor_that_leaves_is_chosen_no_more_until_it_is_heard_of_again():
    made = balancer(offer(1))
    made.withdrew(peer(1))
    assert made.choose(WANTED, 0) is Shortage.UNKNOWN
    made.heard(offer(1))
    assert chosen(made) == {peer(1)}


def test_the_freer_of_two_is_chosen():
    assert chosen(balancer(offer(1, free_slots=0), offer(2, free_slots=3))) == {peer(2)}


def test_the_quicker_of_two_equally_free_ones_is_chosen():
    made = balancer(offer(1), offer(2))
    for _ in range(10):
        made.answered(peer(1), 0.4, 0.0)
        made.answered(peer(2), 0.002, 0.0)
    assert chosen(made) == {peer(2)}


def test_one_that_was_given_up_on_is_slower_than_it_was_taken_for_and_is_not_back():
    made = balancer(offer(1), offer(2))
    made.answered(peer(2), 0.1, 0.0)
    made.unanswered(peer(1), 0.001, 0.0)  # given up at once: that says nothing
    assert chosen(made) == {peer(1)}
    made.failed(peer(1), 0)
    made.unanswered(peer(1), 1.0, 0.0)
    assert chosen(made) == {peer(2)}
    for _ in range(9):
        made.answered(peer(1), 0.01, 0.0)
    assert chosen(made) == {peer(1)}
    made.unanswered(peer(3), 1.0, 0.0)  # nobody knows it


def test_one_that_was_slow_once_is_asked_again_though_others_have_room():
    made = balancer(offer(1), offer(2, free_slots=2))
    made.answered(peer(2), 0.01, 0.0)
    made.answered(peer(1), 1.0, 0.0)
    assert chosen(made, now=CONFIG.slow_half_life_s) == {peer(2)}
    later = 5 * CONFIG.slow_half_life_s
    assert chosen(made, now=later) == {peer(1)}
    made.answered(peer(1), 1.0, later)
    assert chosen(made, now=later) == {peer(2)}


def test_what_this_gateway_sent_counts_before_it_is_announced():
    made = balancer(offer(1), offer(2))
    first = made.choose(WANTED, 0)
    places = [made.take(first) for _ in range(3)]
    assert chosen(made) == {peer(1), peer(2)} - {first.peer}
    for place in places:
        place.release()
    assert made.in_flight(first.peer) == 0


def test_what_was_in_flight_when_an_announcement_came_is_not_counted_twice():
    made = balancer(offer(1, slots=4), offer(2, slots=4, free_slots=1))
    for _ in range(2):
        made.take(offer(1))
    made.heard(offer(1, free_slots=2))
    assert chosen(made) == {peer(1)}


def test_a_place_is_given_back_once_however_often_it_is_released():
    made = balancer(offer(1))
    place, other = made.take(offer(1), 2), made.take(offer(1))
    place.release()
    place.release()
    assert made.in_flight(peer(1)) == 1
    other.release()
    assert made.in_flight(peer(1)) == 0


def test_processors_with_enough_waiting_take_nothing_more():
    full = offer(1, free_slots=0, waiting=8)
    assert balancer(full).choose(WANTED, 0) is Shortage.FULL
    assert chosen(balancer(offer(1, free_slots=0, waiting=7))) == {peer(1)}


def test_an_adapter_is_served_where_it_lies():
    made = balancer(*(offer(n, adapter_models=frozenset({MODEL})) for n in range(8)))
    made.heard(offer(8, adapters=frozenset({"a"})))
    assert chosen(made, Wanted(model=MODEL, adapter="a")) == {peer(8)}


def test_an_adapter_is_loaded_elsewhere_where_its_holder_is_busy():
    holder = offer(1, adapters=frozenset({"a"}), free_slots=0)
    other = offer(2, adapter_models=frozenset({MODEL}))
    cheap = BalancerConfig(load_adapter_s=0.0)
    assert chosen(balancer(holder, other, config=cheap), Wanted(model=MODEL, adapter="a")) == {
        peer(2)
    }


def test_no_processor_that_cannot_load_adapters_gets_one():
    made = balancer(offer(1))
    assert made.choose(Wanted(model=MODEL, adapter="a"), 0) is Shortage.UNKNOWN


def test_equal_numerics_are_preferred_and_others_taken_where_there_are_none():
    same, other = offer(1, free_slots=1), offer(2, fingerprint="amx")
    wanted = Wanted(model=MODEL, fingerprint="avx2")
    assert chosen(balancer(same, other), wanted) == {peer(1)}
    assert chosen(balancer(other), wanted) == {peer(2)}


def test_another_revision_never_goes_on_with_a_stream():
    made = balancer(offer(1), offer(2, models={MODEL: "r2"}))
    assert chosen(made, Wanted(model=MODEL, revision="r2")) == {peer(2)}
    assert made.choose(Wanted(model=MODEL, revision="r3"), 0) is Shortage.UNKNOWN


def test_a_processor_that_fails_is_left_alone_each_time_twice_as_long():
    made = balancer(offer(1, free_slots=1), offer(2))
    made.failed(peer(2), 0.0)
    assert chosen(made, now=0.99) == {peer(1)}
    assert chosen(made, now=1.0) == {peer(2)}
    made.failed(peer(2), 1.0)
    assert chosen(made, now=2.99) == {peer(1)}
    made.answered(peer(2), 0.001, 2.99)
    assert chosen(made, now=2.99) == {peer(2)}


def test_a_processor_that_is_back_is_chosen_at_once_unless_it_misbehaved():
    made = balancer(offer(1, free_slots=1), offer(2))
    for _ in range(5):
        made.failed(peer(2), 0.0)
    made.back(peer(2))
    assert chosen(made) == {peer(2)}
    made.misbehaved(peer(2), 0.0)
    made.back(peer(2))
    assert chosen(made) == {peer(1)}


def test_ejections_have_a_longest():
    made = balancer(offer(1, free_slots=1), offer(2))
    for _ in range(5000):
        made.failed(peer(2), 0.0)
    assert chosen(made, now=CONFIG.longest_ejection_s) == {peer(2)}


def test_one_that_failed_is_better_than_nobody_but_one_that_misbehaved_is_not():
    made = balancer(offer(1))
    made.failed(peer(1), 0.0)
    assert chosen(made) == {peer(1)}
    made.misbehaved(peer(1), 0.0)
    assert made.choose(WANTED, 0.0) is Shortage.AWAY
    assert chosen(made, now=CONFIG.misbehaved_ejection_s) == {peer(1)}


def test_a_new_announcement_does_not_pardon_a_processor_that_misbehaved():
    made = balancer(offer(1, expires_at=1.0))
    made.misbehaved(peer(1), 0.0)
    assert made.offers(2.0) == []
    made.heard(offer(1, expires_at=50.0))
    assert made.choose(WANTED, 2.0) is Shortage.AWAY


def test_excluded_processors_are_away():
    made = balancer(offer(1), offer(2))
    assert chosen(made, Wanted(model=MODEL, excluded={peer(1)})) == {peer(2)}
    everybody = Wanted(model=MODEL, excluded={peer(1), peer(2)})
    assert made.choose(everybody, 0) is Shortage.AWAY


def test_facts_of_processors_that_nobody_knows_are_passed_over():
    made = balancer()
    made.failed(peer(1), 0.0)
    made.misbehaved(peer(1), 0.0)
    made.answered(peer(1), 0.0, 0.0)
    made.withdrew(peer(1))
    assert made.in_flight(peer(1)) == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hear"), st.integers(0, 4), st.integers(0, 4), st.integers(0, 20)),
        st.tuples(st.just("take"), st.integers(1, 4)),
        st.tuples(st.just("release"), st.integers(0, 30)),
        st.tuples(st.just("fail"), st.integers(0, 4)),
        st.tuples(st.just("misbehave"), st.integers(0, 4)),
        st.tuples(st.just("pass"), st.floats(0, 30)),
    ),
    max_size=60,
)


@given(steps=STEPS, seed=st.integers(0, 1000))
def test_counts_never_go_negative_and_choices_are_always_allowed(steps, seed):
    made = balancer(seed=seed)
    now, places, banned = 0.0, [], {}
    for step in steps:
        match step:
            case ("hear", number, free, waiting):
                made.heard(offer(number, free_slots=free, waiting=waiting, expires_at=now + 10))
            case ("take", sequences):
                choice = made.choose(WANTED, now)
                if isinstance(choice, Offer):
                    assert choice.expires_at > now
                    assert now >= banned.get(choice.peer, 0.0)
                    places.append((made.take(choice, sequences), sequences))
            case ("release", place) if places:
                places[place % len(places)][0].release()
            case ("fail", number):
                made.failed(peer(number), now)
            case ("misbehave", number):
                if any(one.peer == peer(number) for one in made.offers(now)):
                    banned[peer(number)] = now + CONFIG.misbehaved_ejection_s
                made.misbehaved(peer(number), now)
            case ("pass", seconds):
                now += seconds
                made.offers(now)
        held = Counter()
        for place, sequences in places:
            held[place.offer.peer] += sequences if place._held else 0
        assert all(made.in_flight(peer(n)) == held[peer(n)] for n in range(5))


@pytest.mark.parametrize("seed", range(3))
def test_gateways_that_saw_the_same_announcements_spread_what_they_send(seed):
    """8 gateways, 16 processors of 8 slots, 96 requests between two announcements."""
    rng = random.Random(seed)
    gateways = [Balancer(CONFIG, random.Random(rng.random())) for _ in range(8)]
    for gateway in gateways:
        for number in range(16):
            gateway.heard(offer(number, slots=8, free_slots=8))
    sent: Counter[PeerId] = Counter()
    for number in range(96):
        gateway = gateways[number % 8]
        choice = gateway.choose(WANTED, 0.0)
        gateway.take(choice)
        sent[choice.peer] += 1
    assert len(sent) == 16
    assert max(sent.values()) <= 12, "6 each if spread evenly"
