"""Sums of usage, and what a spreadsheet makes of them."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tinkex.errors import UnprocessableEntityError
from tinkex.server.records import reports as reports_module
from tinkex.server.records.reports import Reports, usage_csv

START, END = datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC)


@pytest.fixture
def reports(ledger, store, clock):
    return Reports(ledger, store, clock=clock)


async def test_everything_is_one_row_even_when_there_is_nothing(reports):
    report = await reports.usage(None, start=START, end=END, by=[])
    assert [row.requests for row in report.rows] == [0]


async def test_days_and_hours_begin_at_whole_ones(reports, store, make_entry):
    await store.add(
        [make_entry(finished_at=at, usage={"requests": 1}) for at in (7200.0, 10799.0, 10800.0)]
    )
    report = await reports.usage(None, start=START, end=END, by=["hour", "day"])
    assert [(row.hour.hour, row.day, row.requests) for row in report.rows] == [
        (2, START, 2),
        (3, START, 1),
    ]


async def test_more_groups_than_a_reply_can_hold_are_refused(
    reports, store, make_entry, run, monkeypatch
):
    monkeypatch.setattr(reports_module, "MAX_ROWS", 2)
    sources = [replace(run, source_id=f"s:train:{n}") for n in range(3)]
    await store.add([make_entry(source=source) for source in sources])
    with pytest.raises(UnprocessableEntityError, match="fewer groups"):
        await reports.usage(None, start=START, end=END, by=["source"])
    assert len((await reports.usage(None, start=START, end=END, by=["key"])).rows) == 1


async def test_no_cell_of_the_csv_is_a_formula(reports, store, make_entry, run):
    await store.add([make_entry(source=replace(run, base_model="=HYPERLINK(1)"))])
    report = await reports.usage(None, start=START, end=END, by=["base_model"])
    (row,) = csv.DictReader(io.StringIO(usage_csv(report, ["base_model"])))
    assert row["base_model"] == "'=HYPERLINK(1)"
    assert row["requests"] == "1"
