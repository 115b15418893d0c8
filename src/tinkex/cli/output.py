"""What commands print: a table for people, JSON for programs.

Owns the forms. Standard output carries the result alone; progress and remarks go to standard
error, so that what a program reads is always whole.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pydantic import BaseModel
    from rich.table import Table as RichTable

Format = Literal["table", "json"]

MISSING = "N/A"
_WITHOUT_A_TERMINAL = 10_000
"""Columns of a table that goes into a file or a pipe; it takes as many as it needs."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows for people."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    whole: Collection[str] = ()
    """Columns that are not folded while another can be."""


def show(form: Format, value: Any, table: Table) -> None:
    """Print a result in the form that was asked for.

    Args:
        form: which one.
        value: for JSON.
        table: for people.
    """
    if form == "json":
        show_json(value)
    else:
        show_table(table)


def show_json(value: Any) -> None:
    """Print JSON; moments are written as Python's `str` writes them, as the official CLI does."""
    print(json.dumps(value, indent=2, default=str))


def show_table(table: Table) -> None:
    """Print a table; nothing but its title when it has no rows."""
    from rich.console import Console

    if not table.rows:
        if table.title:
            print(table.title)
        return
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WITHOUT_A_TERMINAL  # nothing folds what grep and cut are to find
    console.print(drawn(table))


def drawn(table: Table) -> RichTable:
    """Draw a table for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=table.title, title_justify="left")
    for column in table.columns:
        # an id or a path that is cut cannot be used: it is folded instead
        shown.add_column(column, overflow="fold", no_wrap=column in table.whole)
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def show_properties(form: Format, value: Any, title: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Print one thing: its JSON, or its properties."""
    show(form, value, Table(("Property", "Value"), [list(pair) for pair in pairs], title))


def remark(text: str) -> None:
    """Say something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def plain(message: BaseModel) -> dict[str, Any]:
    """Return a message as a dict with every field, None where the wire leaves it out."""
    return {name: _plain(getattr(message, name)) for name in type(message).model_fields}


def _plain(value: Any) -> Any:
    if hasattr(type(value), "model_fields"):
        return plain(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def size(count: int | None) -> str:
    """Write a number of bytes for people: `1.2 KB`, by powers of 1024."""
    if count is None:
        return MISSING
    amount = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def yes_no(value: bool | None) -> str:
    """Write a truth value for people."""
    return MISSING if value is None else "Yes" if value else "No"


def moment(when: datetime | float | None, now: datetime | None = None) -> str:
    """Write a moment for people: how long ago within a month, else its date.

    Args:
        when: a number is Unix seconds.
        now: the present, if not the clock's.
    """
    if when is None:
        return MISSING
    if not isinstance(when, datetime):
        when = datetime.fromtimestamp(when, UTC)
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    seconds = ((now or _now()) - when).total_seconds()
    ahead, seconds = seconds < 0, abs(seconds)
    for limit, unit_seconds, unit in (
        (60, 1, "second"),
        (3600, 60, "minute"),
        (86400, 3600, "hour"),
        (30 * 86400, 86400, "day"),
    ):
        if seconds < limit:
            count = int(seconds // unit_seconds)
            words = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"in {words}" if ahead else f"{words} ago"
    return when.date().isoformat()


def _now() -> datetime:
    from tinkex._clock import SystemClock

    return datetime.fromtimestamp(SystemClock().now(), UTC)
