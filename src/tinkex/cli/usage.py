"""`tinkex usage`: tokens, checkpoints and engine seconds, summed as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.billing import json_ready, write_csv
from tinkex.cli.connect import invocation

if TYPE_CHECKING:
    from tinkex.types.records import UsageRow

_COLUMN = {"base_model": "Base model"}
_SUMS = ("Trained", "Prompt", "Sampled", "Requests", "Engine s")
"""Tokens, requests, seconds."""
_GROUPS = ("hour", "day", "account", "key", "session", "source", "base_model")


def usage(
    context: typer.Context,
    since: Annotated[
        str | None, typer.Option(help="First moment, as 2026-07-13T00:00:00Z; default: 30 days.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The moment after the last.")] = None,
    by: Annotated[
        str, typer.Option(help=f"What makes a row: of {', '.join(_GROUPS)}.")
    ] = "day,key",
    csv_path: Annotated[
        str | None, typer.Option("--csv", metavar="PATH", help="Write CSV to PATH; - is stdout.")
    ] = None,
) -> None:
    """Show what was used on this server: an administrator's key sees everybody's."""
    groups: Any = [name.strip() for name in by.split(",") if name.strip()]
    options = invocation(context)
    with options.admin() as client:
        report = client.get_usage(since, until, by=groups).result()
    rows = [_row(output.plain(row), groups) for row in report.rows]
    if csv_path is not None:
        write_csv(rows, csv_path, groups)
        return
    value = {
        "starting_on": json_ready(report.starting_on),
        "ending_before": json_ready(report.ending_before),
        "rows": rows,
    }
    title = "Usage" if rows else "Nothing was used in this time"
    shown = [cells(row, groups) for row in report.rows]
    columns = [*(_COLUMN.get(name, name.capitalize()) for name in groups), *_SUMS]
    output.show(options.form, value, output.Table(columns, shown, title))


def cells(row: UsageRow, groups: Sequence[str]) -> list[str]:
    """Write a row so that it fits a terminal; JSON and CSV have every column."""
    fields = [getattr(row, name) for name in groups]
    prompt = f"{row.prefilled_tokens:,}"
    if row.cached_tokens:
        prompt += f" +{row.cached_tokens:,} cached"
    requests = f"{row.requests:,}"
    if row.failed_requests:
        requests += f" +{row.failed_requests:,} failed"
    return [
        *(_group(name, value) for name, value in zip(groups, fields, strict=True)),
        f"{row.forward_tokens + row.forward_backward_tokens:,}",
        prompt,
        f"{row.sampled_tokens:,}",
        requests,
        f"{row.training_s + row.sampling_s:,.1f}",
    ]


def _group(name: str, value: datetime | str | None) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d" if name == "day" else "%Y-%m-%d %H:00")
    return value or "-"


def _row(row: dict[str, Any], groups: list[str]) -> dict[str, Any]:
    """Leave out the groups that were not asked for."""
    others = set(_GROUPS) - set(groups)
    return {name: json_ready(value) for name, value in row.items() if name not in others}
