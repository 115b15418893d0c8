"""Who has been served least."""

from __future__ import annotations

from tinkex.engine.sampling.fair_share import FairShares, TokenCounts


def test_newcomer_starts_at_the_least_of_those_there():
    counts = TokenCounts()
    counts.enter("a")
    counts.charge("a", 10)
    counts.enter("b")
    counts.charge("b", 5)
    counts.enter("c")
    assert counts.served("b") == 15
    assert counts.served("c") == 10


def test_count_is_kept_as_long_as_it_tells_something():
    counts = TokenCounts()
    for name in "ab":
        counts.enter(name)
    counts.charge("a", 10)
    counts.leave("a")
    counts.enter("a")
    assert counts.served("a") == 10
    counts.leave("a")
    counts.charge("b", 30)
    counts.enter("a")
    assert counts.served("a") == 30


def test_nothing_is_kept_once_all_have_left():
    counts = TokenCounts()
    for i in range(100):
        counts.enter(i)
        counts.charge(i, i)
        counts.leave(i)
    assert not counts
    assert not counts._served


def test_counts_below_the_least_are_dropped():
    counts = TokenCounts()
    counts.enter("stays")
    for i in range(100):
        counts.enter(i)
        counts.charge("stays", 2)
        counts.charge(i, 1)
        counts.leave(i)
    assert len(counts._served) < 3


def test_name_with_several_jobs_leaves_with_the_last():
    counts = TokenCounts()
    counts.enter("a")
    counts.enter("a")
    counts.charge("a", 3)
    counts.leave("a")
    assert counts.served("a") == 3
    assert counts


def test_owners_rank_before_their_samplers():
    shares = FairShares()
    for party in (("x", "1"), ("x", "2"), ("y", None)):
        shares.enter(party)
    shares.charge(("x", "1"), 10)
    shares.charge(("y", None), 8)
    order = sorted((("x", "1"), ("x", "2"), ("y", None)), key=shares.rank)
    assert order == [("y", None), ("x", "2"), ("x", "1")]
    shares.leave(("x", "1"))
    shares.leave(("x", "2"))
    assert "x" not in shares._samplers
