"""Metrics page by page, and as CSV."""

import csv
import io

import pytest

from tinkex.server.records.metrics import Metrics, metrics_csv


@pytest.fixture
def metrics(ledger, store):
    return Metrics(ledger, store)


async def test_pages_begin_after_the_cursor_and_tell_where_the_next_does(
    metrics, store, make_entry
):
    await store.add([make_entry(metrics={"loss:sum": float(n)}) for n in range(5)])
    first = await metrics.page("s:train:0", cursor=0, limit=3)
    assert [row.metrics["loss:sum"] for row in first.metrics] == [0.0, 1.0, 2.0]
    rest = await metrics.page("s:train:0", cursor=first.next_cursor, limit=3)
    assert [row.metrics["loss:sum"] for row in rest.metrics] == [3.0, 4.0]
    assert rest.next_cursor is None


async def test_a_page_that_is_full_to_the_last_row_is_the_last(metrics, store, make_entry):
    await store.add([make_entry(metrics={}) for _ in range(3)])
    assert (await metrics.page("s:train:0", cursor=0, limit=3)).next_cursor is None


async def test_what_is_not_finite_is_none(metrics, store, make_entry):
    told = {"a": float("nan"), "b": float("inf"), "c": 1.0}
    await store.add([make_entry(metrics=told)])
    (row,) = (await metrics.page("s:train:0", cursor=0, limit=1)).metrics
    assert row.metrics == {"a": None, "b": None, "c": 1.0}


async def test_csv_has_a_column_for_every_name(metrics, store, make_entry):
    await store.add([make_entry(metrics={"b": 1.0}), make_entry(metrics={"a": 2.0})])
    page = await metrics.page("s:train:0", cursor=0, limit=10)
    rows = list(csv.DictReader(io.StringIO(metrics_csv(page))))
    assert [(row["a"], row["b"]) for row in rows] == [("", "1.0"), ("2.0", "")]
    assert rows[0]["time"] == "1970-01-01T02:00:02Z"
