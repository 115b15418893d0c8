"""Samples on their way in: owners in turn, each owner's in order."""

from types import SimpleNamespace

from tinkex.server.load.arrivals import Arrivals


def filled(*ids):
    """Samples named by owner and number, as "a1"."""
    arrivals = Arrivals()
    for one in ids:
        arrivals.add(SimpleNamespace(job=SimpleNamespace(job_id=one, owner=one[0])))
    return arrivals


def drain(arrivals, passed=()):
    order = []
    while (owner := arrivals.next_owner(passed)) is not None:
        order.append(arrivals.first(owner).job.job_id)
        arrivals.pop(owner)
    return order


def test_owners_take_turns_and_keep_their_own_order():
    assert drain(filled("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_owner_that_is_passed_over_holds_up_nobody():
    arrivals = filled("a1", "a2", "b1", "b2")
    assert drain(arrivals, passed={"a"}) == ["b1", "b2"]
    assert len(arrivals) == 2
    assert "a2" in arrivals
    assert drain(arrivals) == ["a1", "a2"]


def test_samples_leave_from_wherever_they_stand():
    arrivals = filled("a1", "a2", "b1")
    arrivals.remove(["a1", "b1", "never"])
    arrivals.remove([])
    assert drain(arrivals) == ["a2"]
    assert len(arrivals) == 0
    assert "a2" not in arrivals
