"""Bars for long work, on standard error and only on a terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=True,
    )


@contextmanager
def transfer(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show the transfer of one file: call what this gives with (bytes so far, bytes in all)."""
    with transfers() as update:
        yield lambda written, total: update(name, written, total)


@contextmanager
def transfers() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show the transfer of several files: (file, bytes so far, bytes in all)."""
    with _bar() as bar:
        tasks = {}

        def update(name: str, written: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=written, total=total)

        yield update
