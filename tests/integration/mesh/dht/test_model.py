"""Hundreds and thousands of modelled nodes that come and go: everything announced is found.

A failure names its seed; `Scenario(nodes=..., seed=...).play()` replays it.
"""

import math

import pytest

from tinkex.testing.dht_model import DhtModel, Scenario


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(nodes=300, seed=11, topics=12, lookups_per_s=5, seconds=60, warm_up_s=30),
        pytest.param(
            Scenario(nodes=10_000, seed=12, topics=100, lookups_per_s=12, seconds=1800),
            marks=pytest.mark.soak,
        ),
    ],
    ids=lambda scenario: f"{scenario.nodes}-nodes",
)
def test_lookups_succeed_under_churn_in_few_hops(scenario):
    figures = scenario.play()
    assert figures.lookups >= 0.9 * scenario.lookups_per_s * scenario.seconds
    assert figures.found / figures.lookups > 0.999, (scenario, figures.missed)
    assert figures.mean_hops <= math.log2(scenario.nodes) / 2, scenario
    assert figures.percentile(0.99) < 1.0, scenario


def test_run_of_a_seed_is_the_same_again():
    scenario = Scenario(
        nodes=40, seed=3, topics=3, lookups_per_s=3, seconds=12, warm_up_s=20, churn=5
    )
    first, second = scenario.play(), scenario.play()
    assert first == second
    assert first.lookups > 30
    assert first.found


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_missed_after_one_retry_when_a_third_dies_at_once(seed):
    model = DhtModel(300, seed=seed)
    topics = [f"model:{number}" for number in range(20)]
    publishers = {topic: model.announce(topic) for topic in topics}
    model.run(60)
    for state in [*model.nodes.values()][::3]:
        if state not in publishers.values():
            model.kill(state)
    for topic in topics * 5:
        model.measure(topic, publishers[topic])
    model.run(10)
    assert model.figures.lookups == 100
    assert model.figures.missed == [], seed
    assert model.figures.percentile(0.5) < 0.35  # at 40 ms a round trip
    assert model.figures.percentile(0.99) < 1.0
