"""A request's seconds."""

from tinkex.server.records.work import Source, Work


def test_seconds_add_up_and_the_first_are_when_it_began():
    work = Work(Source(owner="o", key_id="k"), accepted_at=1000.0, accepted=10.0)
    assert work.began is None
    work.spend(0.5, began=12.0)
    work.spend(0.25, began=15.0)
    assert (work.engine_s, work.began) == (0.75, 12.0)
