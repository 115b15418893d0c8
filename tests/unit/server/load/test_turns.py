"""Whose turn it is: owners first, then the runs of each."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tinkex.server.load.turns import Turns


def filled(runs):
    """Lanes with much work: {owner: number of runs}."""
    turns = Turns()
    for owner, count in runs.items():
        for n in range(count):
            turns.add(f"{owner}{n}", owner, "work")
            turns.lane(f"{owner}{n}").queue.extend(["work"] * 2_000)
    return turns


def spend(turns, slices, cost=lambda _lane: 1):
    """Run so many slices; give the tokens that each owner, and each lane, had."""
    owners, lanes = Counter(), Counter()
    for _ in range(slices):
        lane = turns.take()
        tokens = cost(lane)
        owners[lane.owner] += tokens
        lanes[lane.name] += tokens
        lane.queue.popleft()
        turns.charge(lane, tokens)
        turns.give_back(lane)
    return owners, lanes


def test_fifty_runs_of_one_owner_have_as_much_as_the_only_run_of_another():
    owners, lanes = spend(filled({"many": 50, "one": 1}), 1000)
    assert owners == {"many": 500, "one": 500}
    assert {lanes[f"many{n}"] for n in range(50)} == {10}


def test_tokens_count_and_not_the_number_of_turns():
    owners, _ = spend(filled({"a": 3, "b": 1}), 1200, lambda lane: 5 if lane.owner == "a" else 1)
    assert abs(owners["a"] - owners["b"]) <= 5


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=5),
    st.lists(st.integers(1, 50), min_size=5, max_size=5),
)
def test_no_owner_is_ahead_of_another_by_more_than_a_slice(runs, costs):
    turns = filled({f"o{n}x": count for n, count in enumerate(runs)})
    owners, lanes = spend(turns, 200, lambda lane: costs[int(lane.owner[1])])
    assert max(owners.values()) - min(owners.values()) <= 2 * max(costs)
    for n, count in enumerate(runs):
        had = [lanes[f"o{n}x{k}"] for k in range(count)]
        assert max(had) - min(had) <= 2 * costs[n]


def test_owner_that_comes_back_has_earned_no_credit():
    turns = filled({"a": 1})
    spend(turns, 100)
    turns.add("b", "b", "work")
    turns.lane("b").queue.extend(["work"] * 1000)
    owners, _ = spend(turns, 100)
    assert owners["a"] >= 49


def test_owner_that_leaves_for_a_moment_pays_its_debt():
    turns = filled({"a": 1})
    turns.add("b", "b", "work")
    turns.give_back(turns.take())
    lane = turns.take()
    assert lane.name == "b"
    lane.queue.popleft()
    turns.charge(lane, 10)
    turns.give_back(lane)
    turns.add("b", "b", "work")
    spent, _ = spend(turns, 10)
    assert spent == {"a": 10}


def test_owners_take_turns_to_go_along():
    turns = filled({"a": 3, "b": 2})
    first = turns.take()
    assert [lane.name for lane in turns.candidates(first)] == ["b0", "a1", "b1", "a2"]
    turns.take_this(turns.lane("b0"))
    assert "b0" not in [lane.name for lane in turns.waiting]


def test_dropped_lane_has_no_more_turns_wherever_it_is():
    turns = filled({"a": 2})
    held = turns.take()
    assert turns.drop(held.name) is held
    turns.charge(held, 1)
    turns.give_back(held)
    turns.take_this(held)
    assert turns.drop(held.name) is None
    turns.drop("a1")
    assert turns.take() is None
    assert (len(turns), bool(turns)) == (0, False)


def test_work_of_a_lane_keeps_its_order_and_a_lane_without_work_goes():
    turns = Turns()
    for piece in (1, 2):
        turns.add("a", "o", piece)
    lane = turns.take()
    assert list(lane.queue) == [1, 2]
    lane.queue.clear()
    turns.give_back(lane)
    assert turns.lane("a") is None
