"""Weights between the requests of a conversation."""

import pytest

from tinkex.server.completer.warm import WarmWeights


class Weights:
    """Counts its users, as a snapshot does."""

    def __init__(self):
        self.users = 0

    def acquire(self):
        self.users += 1
        return self

    def release(self):
        self.users -= 1


@pytest.fixture
def warm(timers):
    return WarmWeights(timers, idle_s=100, most=2)


async def test_weights_stay_until_they_have_been_idle(warm, advance):
    weights = Weights()
    warm.keep(weights.acquire())
    await advance(60)
    warm.keep(weights.acquire())
    assert weights.users == 1
    await advance(60)
    assert weights.users == 1
    await advance(41)
    assert weights.users == 0
    assert len(warm) == 0


async def test_weights_not_used_for_longest_go_first(warm):
    first, second, third = (Weights() for _ in range(3))
    for weights in (first, second, first, third):
        warm.keep(weights.acquire())
    assert [weights.users for weights in (first, second, third)] == [1, 0, 1]
    assert len(warm) == 2
