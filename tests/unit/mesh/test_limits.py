"""Limits of one key: never exceeded, and closed where they cannot count."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tinkex.mesh.limits import InProgress, SlidingWindow


def test_a_window_takes_its_limit_and_says_when_there_is_room_again():
    window = SlidingWindow(3)
    assert [window.take("k", 1, 0.0) for _ in range(3)] == [None] * 3
    wait = window.take("k", 1, 10.0)
    assert wait is not None
    assert 0 < wait <= 61
    assert window.take("k", 1, 10.0 + wait) is None


def test_a_refused_request_takes_nothing():
    window = SlidingWindow(10)
    assert window.take("k", 8, 0.0) is None
    assert window.take("k", 3, 0.0) is not None
    assert window.take("k", 2, 0.0) is None


def test_what_was_not_needed_can_be_taken_again_while_it_counts():
    window = SlidingWindow(10)
    assert window.take("k", 4, 0.0) is None
    assert window.take("k", 6, 20.0) is None
    window.give_back("k", 5, 20.0)
    assert window.take("k", 6, 21.0) is not None
    assert window.take("k", 5, 21.0) is None
    window.give_back("k", 4, 0.0)
    assert window.take("k", 4, 22.0) is None


def test_what_counts_no_more_is_given_back_to_nobody():
    window = SlidingWindow(10)
    window.give_back("nobody", 5, 0.0)
    assert window.take("k", 10, 0.0) is None
    assert window.take("k", 10, 70.0) is None
    window.give_back("k", 10, 0.0)
    assert window.take("k", 1, 71.0) is not None


def test_keys_have_windows_of_their_own():
    window = SlidingWindow(1)
    assert window.take("a", 1, 0.0) is None
    assert window.take("b", 1, 0.0) is None


def test_what_is_above_the_limit_never_fits():
    assert SlidingWindow(5).take("k", 6, 0.0) == math.inf


def test_gateways_that_share_a_limit_do_not_multiply_it():
    gateways = [SlidingWindow(9) for _ in range(4)]
    taken = sum(
        gateway.take("k", 1, 0.0, shared_by=4) is None for gateway in gateways for _ in range(9)
    )
    assert taken == 8


def test_more_keys_than_can_be_counted_are_refused_until_others_are_idle():
    window = SlidingWindow(5, max_keys=2)
    assert window.take("a", 1, 0.0) is None
    assert window.take("b", 1, 30.0) is None
    assert window.take("c", 1, 31.0) == 60.0
    assert window.take("c", 1, 62.0) is None, "a is idle by now"
    assert window.take("a", 1, 62.0) == 60.0


@given(
    requests=st.lists(
        st.tuples(st.floats(0, 30, allow_subnormal=False), st.integers(1, 4)), max_size=60
    )
)
def test_no_stretch_of_a_window_has_more_than_the_limit(requests):
    window, now, taken = SlidingWindow(7), 0.0, []
    for gap, amount in requests:
        now += gap
        wait = window.take("k", amount, now)
        if wait is None:
            taken.append((now, amount))
        else:
            assert wait > 0
    for start, _ in taken:
        assert sum(amount for at, amount in taken if start <= at < start + 60) <= 7


@given(requests=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 7)), min_size=1, max_size=30))
def test_waiting_as_long_as_told_is_enough(requests):
    window, now = SlidingWindow(7), 0.0
    for gap, amount in requests:
        now += gap
        wait = window.take("k", amount, now)
        if wait is not None:
            now += wait + 1e-6
            assert window.take("k", amount, now) is None


def test_requests_at_once_are_bounded_by_key_and_in_all():
    progress = InProgress(per_key=2, in_all=3)
    first, second = progress.enter("a"), progress.enter("a")
    assert progress.enter("a") is None
    assert progress.enter("b") is not None
    assert progress.enter("c") is None
    assert first is not None
    first.leave()
    first.leave()
    assert progress.total == 2
    assert progress.enter("a") is not None
    assert second is not None
