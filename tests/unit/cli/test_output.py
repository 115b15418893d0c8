"""What commands print for people and for programs."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tinkex.cli import output
from tinkex.cli.paging import Shown, fetch_pages
from tinkex.types import Checkpoint

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "N/A"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (1536, "1.5 KB"),
        (5 * 2**20, "5.0 MB"),
        (3 * 2**30, "3.0 GB"),
        (2**41, "2.0 TB"),
    ],
)
def test_sizes_are_written_by_powers_of_1024(count, text):
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400, "1 day ago"),
        (29 * 86400, "29 days ago"),
        (31 * 86400, "2026-05-15"),
        (-3600, "in 1 hour"),
        (-90, "in 1 minute"),
    ],
)
def test_moments_are_told_from_now(seconds, text):
    assert output.moment(NOW - timedelta(seconds=seconds), NOW) == text


def test_table_that_goes_into_a_pipe_folds_nothing(capsys, monkeypatch):
    path = "tinker://" + "a" * 150 + "/weights/last"
    table = output.Table(("Path", "Words"), [[path, "some more words " * 9]])
    monkeypatch.delenv("COLUMNS", raising=False)
    output.show_table(table)
    assert path in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "60")
    output.show_table(table)
    assert path not in capsys.readouterr().out


def test_moment_without_a_zone_is_utc_and_none_is_missing():
    assert output.moment(datetime(2026, 6, 15, 11), NOW) == "1 hour ago"  # noqa: DTZ001
    assert output.moment(None) == "N/A"
    assert output.yes_no(None) == "N/A"


def test_json_has_every_field_and_moments_as_python_writes_them(capsys):
    checkpoint = Checkpoint(
        checkpoint_id="weights/a", checkpoint_type="training", time=NOW, tinker_path="tinker://r/w"
    )
    output.show("json", {"one": output.plain(checkpoint)}, output.Table((), ()))
    shown = json.loads(capsys.readouterr().out)["one"]
    assert shown["time"] == "2026-06-15 12:00:00+00:00"
    assert shown["expires_at"] is None
    assert set(shown) == set(Checkpoint.model_fields)


def test_table_folds_an_id_that_is_too_long_instead_of_cutting_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    long = "tinker://" + "x" * 60
    output.show_table(output.Table(("Path", "[b]"), [[long, "[red]a[/red]"]], "title"))
    out = capsys.readouterr().out
    assert out.count("x") == 60
    assert "…" not in out
    output.show_table(output.Table(("Path",), [], "No paths found"))
    assert capsys.readouterr().out == "No paths found\n"


def pages(total):
    asked = []

    def fetch(size, offset):
        asked.append((size, offset))
        return Shown(list(range(offset, min(offset + size, total))), total)

    return fetch, asked


@pytest.mark.parametrize(
    ("total", "limit", "count", "requests"),
    [
        (250, 0, 250, [(100, 0), (100, 100), (100, 200)]),
        (250, 120, 120, [(100, 0), (20, 100)]),
        (250, 20, 20, [(20, 0)]),
        (200, 0, 200, [(100, 0), (100, 100)]),
        (0, 0, 0, [(100, 0)]),
        (5, 20, 5, [(20, 0)]),
    ],
)
def test_pages_are_fetched_up_to_the_limit(total, limit, count, requests):
    fetch, asked = pages(total)
    found = fetch_pages(fetch, limit, 100)
    assert found.items == list(range(count))
    assert found.total == total
    assert asked == requests


def test_title_says_what_is_not_shown():
    assert Shown([1], 1).title("run") == "1 run"
    assert Shown([1, 2], 5).title("run") == "2 runs (3 more: --limit shows them)"
    assert Shown([], 0).title("run", " for x") == "No runs found for x"
