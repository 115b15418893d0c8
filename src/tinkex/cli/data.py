"""`tinkex check`, `backup` and `restore`: the data folder of a server, on the machine it is on.

Owns flags and words; the work is `tinkex.server.files`'.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.extras import require_server_extra
from tinkex.cli.output import Table
from tinkex.cli.serve import default_data_dir

if TYPE_CHECKING:
    from tinkex.server.files.backup import Backup
    from tinkex.server.files.check import Report

_DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="TINKEX_SERVE_DATA_DIR",
        metavar="FOLDER",
        help="The server's data folder; default: the one that `tinkex serve` takes.",
    ),
]


def check(
    context: typer.Context,
    data_dir: Annotated[
        Path | None, typer.Argument(help="The data folder; default: as --data-dir's.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--data-dir", envvar="TINKEX_SERVE_DATA_DIR", help="The same, as a flag."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare names and sizes of files, not contents.")
    ] = False,
) -> None:
    """Verify a data folder: database, every file that it names, orphans, permissions.

    The server may run meanwhile; orphans are looked for when none does. Exit code 0: nothing is
    lost; 1: something is.
    """
    require_server_extra("tinkex check")
    from tinkex.server.files.check import check_data_dir

    report = check_data_dir(data_dir or folder or default_data_dir(), hashes=not quick)
    show_report(invocation(context).form, report)
    raise typer.Exit(0 if report.ok else 1)


def check_and_exit(context: typer.Context, data_dir: Path) -> NoReturn:
    """Verify a data folder for `tinkex serve --check`.

    Raises:
        typer.Exit: at the end, with the exit code.
    """
    from tinkex.server.files.check import check_data_dir

    report = check_data_dir(data_dir)
    show_report(invocation(context).form, report)
    raise typer.Exit(0 if report.ok else 1)


def backup(
    context: typer.Context,
    destination: Annotated[Path, typer.Argument(help="Folder to make; it must not be there.")],
    data_dir: _DataDir = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="Hard links instead of copies: quick, but the same disk's bytes."
        ),
    ] = False,
) -> None:
    """Copy the data folder of a server, running or not, as it is at one moment."""
    require_server_extra("tinkex backup")
    from tinkex._clock import SystemClock
    from tinkex.server.files.backup import back_up

    done = back_up(data_dir or default_data_dir(), destination, clock=SystemClock(), link=link)
    _show_backup(context, done, "Backup")


def restore(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A folder that `tinkex backup` made.")],
    data_dir: _DataDir = None,
) -> None:
    """Put a backup back as a data folder, verified before and after; then start the server."""
    require_server_extra("tinkex restore")
    from tinkex.server.files.backup import restore as put_back

    _show_backup(context, put_back(source, data_dir or default_data_dir()), "Restored")


def show_report(form: output.Format, report: Report) -> None:
    """Print what a check found."""
    rows = [
        (severity, one.kind, one.where, one.problem)
        for severity, found in (("error", report.errors), ("warning", report.warnings))
        for one in found
    ]
    state = "nothing is lost" if report.ok else f"{len(report.errors)} errors"
    title = (
        f"{report.data_dir}: {state}. Database revision {report.revision or 'unknown'}, "
        f"{report.folders} checkpoints and snapshots, {report.files} files, "
        f"{output.size(report.size_bytes)}."
    )
    if report.unrecorded:
        title += f" {report.unrecorded} older ones have no record of their files."
    table = Table(("Severity", "Kind", "Where", "Problem"), rows, title)
    output.show(form, report.as_json(), table)


def _show_backup(context: typer.Context, done: Backup, title: str) -> None:
    pairs = [
        ("Folder", done.path),
        ("State of", done.taken_at),
        ("Checkpoints, snapshots", str(done.folders)),
        ("Files", str(done.files)),
        ("Size", output.size(done.size_bytes)),
    ]
    output.show_properties(invocation(context).form, asdict(done), title, pairs)
