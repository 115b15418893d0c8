"""The database of what is written down: one count each, steps in order, bounds."""

import itertools
from dataclasses import replace

import pytest
from sqlalchemy.exc import StatementError

from tinkex.server.records.store import RecordStore
from tinkex.server.records.tables import REQUESTS, TRAINING_METRICS, USAGE_HOURS
from tinkex.server.records.usage import Usage


async def test_usage_is_summed_by_hour_and_source(store, make_entry, rows, run):
    other = replace(run, source_id="s:train:1")
    entries = [
        make_entry(usage={"sampled_tokens": 1}),
        make_entry(usage={"sampled_tokens": 2}),
        make_entry(usage={"sampled_tokens": 4}, source=other),
        make_entry(usage={"sampled_tokens": 8}, finished_at=10800.0),
    ]
    await store.add(entries[:2])
    await store.add(entries[2:])
    found = {(row.hour, row.source_id): row.sampled_tokens for row in await rows(USAGE_HOURS)}
    assert found == {
        (7200, "s:train:0"): 3,
        (7200, "s:train:1"): 4,
        (10800, "s:train:0"): 8,
    }
    assert await store.used("k") == Usage(sampled_tokens=15)


async def test_an_entry_that_is_there_is_not_counted_again(store, make_entry, rows):
    entry, other = make_entry("a", usage={"sampled_tokens": 1}), make_entry("b")
    assert await store.add([entry]) == [entry]
    assert await store.add([entry, other]) == [other]
    assert await store.add([entry]) == []
    assert (await store.used("k")).sampled_tokens == 1
    assert len(await rows(REQUESTS)) == 2


async def test_steps_are_numbered_by_optimiser_step_also_by_a_server_that_starts_again(
    store, database, make_entry, rows
):
    def step():
        return [
            make_entry(operation="forward_backward", metrics={"loss:sum": 1.0}),
            make_entry(operation="optim_step", metrics={"grad_norm": 2.0}),
        ]

    await store.add(step() + step())
    await RecordStore(database, max_metric_rows=100, max_request_rows=1000).add(step())
    found = [(row.operation, row.step) for row in await rows(TRAINING_METRICS)]
    assert found == [
        (operation, number)
        for number in (1, 2, 3)
        for operation in ("forward_backward", "optim_step")
    ]


async def test_metrics_above_the_limit_are_thinned_in_the_older_half(database, make_entry, rows):
    store = RecordStore(database, max_metric_rows=40, max_request_rows=1000)
    for _ in range(100):
        await store.add(
            [
                make_entry(operation="forward_backward", metrics={"loss:sum": 1.0}),
                make_entry(operation="optim_step", metrics={}),
            ]
        )
    found = await rows(TRAINING_METRICS)
    steps = sorted({row.step for row in found})
    assert len(found) == 2 * len(steps)
    assert 30 <= len(found) <= 40
    assert steps[0] == 1
    assert steps[-1] == 100
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert gaps == sorted(gaps, reverse=True)


async def test_a_batch_that_fails_leaves_nothing_behind(store, make_entry, rows):
    good, bad = make_entry(), make_entry(metrics={"loss": object()})
    for _ in range(2):
        with pytest.raises(StatementError, match="not JSON serializable"):
            await store.add([good, bad])
    assert await rows(REQUESTS) == []
    assert await store.used("k") == Usage()


async def test_old_rows_go_and_of_the_requests_also_the_oldest_of_too_many(
    database, make_entry, rows
):
    store = RecordStore(database, max_metric_rows=100, max_request_rows=5)
    await store.add([make_entry(f"r{n}", finished_at=float(n), metrics={}) for n in range(10)])
    await store.prune(requests_before=2.0, metrics_before=3.0)
    assert [row.request_id for row in await rows(REQUESTS)] == ["r5", "r6", "r7", "r8", "r9"]
    assert [row.at for row in await rows(TRAINING_METRICS)] == [float(n) for n in range(3, 10)]
    await store.prune(requests_before=8.0, metrics_before=0.0)
    assert [row.request_id for row in await rows(REQUESTS)] == ["r8", "r9"]
    assert (await store.used("k")).requests == 10


async def test_requests_are_bounded_however_many_come_in_a_day(database, make_entry, rows):
    store = RecordStore(database, max_metric_rows=100, max_request_rows=80)
    for _ in range(40):
        await store.add([make_entry() for _ in range(10)])
        assert len(await rows(REQUESTS)) <= 100
    assert (await store.used("k")).requests == 400
