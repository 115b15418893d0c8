"""What the demo shows: rules, live progress, charts, the closing table. Knows no API."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tinkex.demo.chart import line_chart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Without a terminal there is no bar to redraw: a line every so many steps instead.
_PLAIN_EVERY = 5


class Screen:
    """Prints to a terminal with live bars, and to a file as plain lines."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def part(self, title: str) -> None:
        """Open a part of the demo."""
        self.console.print()
        self.console.rule(Text(title, style="bold"), align="left")

    def say(self, line: str) -> None:
        """Print a sentence on what happens now."""
        self.console.print(Text(line), soft_wrap=True)

    def figure(self, name: str, value: str) -> None:
        """Print one named figure."""
        self.console.print(Text.assemble(("  " + name.ljust(40), "dim"), value), soft_wrap=True)

    @contextmanager
    def steps(self, title: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Show progress over `total` steps; call the yielded function with (done, figures)."""
        if not self.console.is_terminal:
            yield lambda done, figures: self._plain(title, done, total, figures)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=total, figures="")
            yield lambda done, figures: progress.update(task, completed=done, figures=figures)

    def _plain(self, title: str, done: int, total: int, figures: str) -> None:
        if done == 1 or done % _PLAIN_EVERY == 0 or done == total:
            self.console.print(Text(f"  {title} {done}/{total}  {figures}"))

    def curve(self, title: str, values: Sequence[float]) -> None:
        """Draw `values` from the first step to the last."""
        self.console.print(Text(f"\n{title}", style="bold"))
        self.console.print(Text(line_chart(values)))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows under headings."""
        table = Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)
