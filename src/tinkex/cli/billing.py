"""`tinkex billing`: what was used, as tables, JSON or CSV."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.output import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(help="Show what was used.", no_args_is_help=True, rich_markup_mode=None)

CsvPath = Annotated[
    str | None, typer.Option("--csv", metavar="PATH", help="Write CSV to PATH; - is stdout.")
]


@app.command("usage")
def usage(
    context: typer.Context,
    starting_on: Annotated[str, typer.Argument(help="First UTC hour: 2026-07-13T00:00:00Z.")],
    ending_before: Annotated[str, typer.Argument(help="The hour after the last one.")],
    csv_path: CsvPath = None,
    sessions_csv: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the sessions as CSV; - is stdout.")
    ] = None,
) -> None:
    """Show usage by the hour, kind, base model and session."""
    options = invocation(context)
    with options.admin() as client:
        response = client.get_billing_usage(starting_on, ending_before).result()
    events = [json_ready(output.plain(event)) for event in response.data]
    if sessions_csv is not None:
        write_csv(
            [
                {"session_id": name, "user_metadata": json.dumps(session.user_metadata)}
                for name, session in response.sessions.items()
            ],
            sessions_csv,
            ("session_id", "user_metadata"),
        )
    rows = [_flat(event) for event in events]
    if csv_path is not None:
        write_csv(rows, csv_path, ("bucket_start", "bucket_end"))
    if csv_path is not None or sessions_csv is not None:
        return
    value = {
        "data": events,
        "sessions": {name: output.plain(one) for name, one in response.sessions.items()},
        "cost_data_through": json_ready(response.cost_data_through),
    }
    title = f"{len(rows)} hourly usage rows" if rows else "No usage in this window"
    output.show(options.form, value, _table(rows, title))


@app.command("checkpoint-storage")
def checkpoint_storage(
    context: typer.Context,
    project_id: Annotated[str | None, typer.Option(help="Only this project's.")] = None,
    csv_path: CsvPath = None,
) -> None:
    """Show what checkpoints take now."""
    options = invocation(context)
    with options.admin() as client:
        response = client.get_current_checkpoint_storage_usage(project_id).result()
    data = [output.plain(item) for item in response.data]
    rate = response.effective_rate_usd_per_gigabyte_month
    rows = [{"effective_rate_usd_per_gigabyte_month": rate, **item} for item in data]
    if csv_path is not None:
        write_csv(rows, csv_path, ("checkpoint_count", "size_bytes"))
        return
    value = {"effective_rate_usd_per_gigabyte_month": rate, "data": data}
    title = "Checkpoint storage" if rows else "No checkpoints"
    output.show(options.form, value, _table(rows, title))


def json_ready(value: Any) -> Any:
    """Write moments as the wire does."""
    if isinstance(value, dict):
        return {name: json_ready(one) for name, one in value.items()}
    return value.isoformat().replace("+00:00", "Z") if hasattr(value, "isoformat") else value


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Put what kind of usage it is into the row itself."""
    return {**{name: v for name, v in row.items() if name != "event_info"}, **row["event_info"]}


def _columns(rows: Sequence[dict[str, Any]], otherwise: Sequence[str]) -> list[str]:
    """Every key, in the order in which they first come."""
    return list(dict.fromkeys(name for row in rows for name in row)) or list(otherwise)


def _table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    columns = _columns(rows, ())
    cells = [["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]
    return Table(columns, cells, title)


def show_rows(form: output.Format, value: Any, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print rows as a table of whatever columns they have, or `value` as JSON."""
    output.show(form, value, _table(rows, title))


def write_csv(rows: Sequence[dict[str, Any]], path: str, otherwise: Sequence[str]) -> None:
    """Write rows as CSV; without rows, the columns `otherwise`. `-` is standard output."""

    def write(file: Any) -> None:
        writer = csv.DictWriter(file, _columns(rows, otherwise), restval="")
        writer.writeheader()
        writer.writerows(rows)

    if path == "-":
        write(sys.stdout)
        return
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        write(file)
    output.remark(f"Wrote {len(rows)} rows to {path}")
