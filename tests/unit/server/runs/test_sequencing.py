"""Order by sequence id: out-of-order arrival, gaps, late and repeated ids."""

import random

import pytest

from tinkex.errors import EngineError, InputError
from tinkex.server.runs.sequencing import Sequencer


class Harness:
    def __init__(self, max_held=100):
        self.released = []
        self.abandoned = {}
        self.armed = 0
        self.running = False
        self.sequencer = Sequencer(
            release=self.released.append,
            abandon=self.abandoned.__setitem__,
            arm=self._arm,
            disarm=self._disarm,
            max_held=max_held,
        )

    def _arm(self):
        self.armed += 1
        self.running = True

    def _disarm(self):
        self.running = False

    def offer(self, *ids):
        for seq_id in ids:
            self.sequencer.offer(seq_id, seq_id)


def test_requests_run_in_order_when_the_first_chunk_comes_last():
    harness = Harness()
    harness.offer(2, 3, 1)
    assert harness.released == [1, 2, 3]
    assert not harness.running


def test_requests_run_in_order_whatever_the_order_of_arrival():
    ids = list(range(1, 200))
    random.Random(5).shuffle(ids)
    harness = Harness(max_held=200)
    harness.offer(*ids)
    assert harness.released == sorted(ids)
    assert harness.sequencer.held == 0
    assert not harness.running


def test_gap_timer_runs_only_while_something_waits():
    harness = Harness()
    harness.offer(1)
    assert not harness.running
    harness.offer(3)
    assert harness.running
    harness.offer(2)
    assert not harness.running


def test_gap_timer_starts_anew_when_the_run_moves_on_to_another_gap():
    harness = Harness()
    harness.offer(2, 5)
    assert harness.armed == 1
    harness.offer(1)
    assert harness.released == [1, 2]
    assert harness.running
    assert harness.armed == 2


def test_gap_timer_is_not_prolonged_by_more_waiting_requests():
    harness = Harness()
    harness.offer(2, 3, 4)
    assert harness.armed == 1


def test_held_requests_fail_with_category_server_after_the_gap_timeout():
    harness = Harness()
    harness.offer(1, 3, 4)
    harness.sequencer.skip_gap(60.0)
    assert harness.released == [1]
    assert sorted(harness.abandoned) == [3, 4]
    assert {error.category for error in harness.abandoned.values()} == {"server"}
    assert "seq_id 2" in str(harness.abandoned[3])
    assert "60 s" in str(harness.abandoned[3])


def test_run_goes_on_after_the_abandoned_requests():
    harness = Harness()
    harness.offer(1, 3, 4)
    harness.sequencer.skip_gap(60.0)
    harness.offer(5, 6)
    assert harness.released == [1, 5, 6]


def test_what_a_gap_decided_before_held_back_is_told_again():
    harness = Harness()
    harness.offer(2, 3)
    harness.sequencer.go_on_with(4)
    assert sorted(harness.abandoned) == [2, 3]
    assert "seq_id 1 of the same run did not arrive" in str(harness.abandoned[2])
    assert not harness.running
    harness.offer(4)
    assert harness.released == [4]


def test_what_came_for_after_a_gap_waits_on_when_that_is_decided():
    """It may have been kept before the gap's row, and have come to its run after it."""
    harness = Harness()
    harness.offer(2, 5)
    harness.sequencer.go_on_with(4)
    assert list(harness.abandoned) == [2]
    assert harness.running
    harness.offer(4)
    assert harness.released == [4, 5]
    harness = Harness()
    harness.offer(2, 4)
    harness.sequencer.go_on_with(4)
    assert harness.released == [4]
    assert not harness.running


def test_missing_request_that_arrives_after_the_timeout_is_not_run():
    harness = Harness()
    harness.offer(1, 3)
    harness.sequencer.skip_gap(60.0)
    harness.offer(2)
    assert harness.released == [1]
    assert isinstance(harness.abandoned[2], EngineError)


def test_gap_timeout_without_a_gap_changes_nothing():
    harness = Harness()
    harness.offer(1)
    harness.sequencer.skip_gap(60.0)
    harness.offer(2)
    assert harness.released == [1, 2]


@pytest.mark.parametrize("seq_id", [0, -3])
def test_id_below_the_first_is_the_callers_fault(seq_id):
    harness = Harness()
    harness.offer(seq_id)
    assert isinstance(harness.abandoned[seq_id], InputError)


def test_too_many_waiting_requests_are_refused_but_never_the_awaited_one():
    harness = Harness(max_held=2)
    harness.offer(2, 3, 4)
    assert list(harness.abandoned) == [4]
    harness.offer(1)
    assert harness.released == [1, 2, 3]


def test_closing_fails_what_is_held():
    harness = Harness()
    harness.offer(2, 3)
    error = InputError("over")
    harness.sequencer.close(error)
    assert harness.abandoned == {2: error, 3: error}
    assert not harness.running
