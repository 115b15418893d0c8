"""The table of what was used: for a terminal, every kind of token told apart."""

from datetime import UTC, datetime

from tinkex.cli.usage import cells
from tinkex.types.records import UsageRow

SUMS = {
    "forward_tokens": 1000,
    "forward_backward_tokens": 2500,
    "prefilled_tokens": 18,
    "cached_tokens": 0,
    "sampled_tokens": 6,
    "checkpoints": 0,
    "requests": 3,
    "failed_requests": 0,
    "training_s": 1.25,
    "sampling_s": 0.5,
}


def test_row_fits_a_terminal_and_adds_up():
    row = UsageRow(day=datetime(2026, 7, 13, tzinfo=UTC), key="key-1", **SUMS)
    assert cells(row, ["day", "key"]) == ["2026-07-13", "key-1", "3,500", "18", "6", "3", "1.8"]


def test_cached_tokens_and_failures_are_told_where_there_are_any():
    row = UsageRow(
        hour=datetime(2026, 7, 13, 9, tzinfo=UTC),
        session="",
        **SUMS | {"cached_tokens": 64, "failed_requests": 2},
    )
    assert cells(row, ["hour", "session"]) == [
        "2026-07-13 09:00",
        "-",
        "3,500",
        "18 +64 cached",
        "6",
        "3 +2 failed",
        "1.8",
    ]
