"""`tinkex session`: the sessions of the caller, and their traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.output import Table

app = typer.Typer(
    help="List sessions, show them, export their traces.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_sessions(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="Sessions at most.", min=1)] = 20,
    offset: Annotated[int, typer.Option(help="Sessions to pass over.", min=0)] = 0,
) -> None:
    """List session ids, the newest first."""
    options = invocation(context)
    with options.rest() as client:
        found = client.list_sessions(limit=limit, offset=offset).result().sessions
    table = Table(("Session ID",), [[one] for one in found], None if found else "No sessions found")
    output.show(options.form, {"sessions": found}, table)


@app.command("info")
def info(
    context: typer.Context, session_id: Annotated[str, typer.Argument(help="Id of the session.")]
) -> None:
    """Show what a session made."""
    options = invocation(context)
    with options.rest() as client:
        session = client.get_session(session_id).result()
    pairs = [
        ("Session ID", session_id),
        ("Name", session.display_name or output.MISSING),
        *(("Training Run", run) for run in session.training_run_ids),
        *(("Sampler", sampler) for sampler in session.sampler_ids),
        *((f"Metadata {name}", str(v)) for name, v in (session.user_metadata or {}).items()),
    ]
    value = {"session_id": session_id, **output.plain(session)}
    output.show_properties(options.form, value, f"Session: {session_id}", pairs)


@app.command("export-trace")
def export_trace(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="Id of the session.")],
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to; default: SESSION_ID.pftrace here."),
    ] = None,
    url_only: Annotated[
        bool, typer.Option("--url-only", help="Print the address instead of fetching it.")
    ] = False,
) -> None:
    """Export a session's timeline, to be opened in https://ui.perfetto.dev."""
    from tinkex.cli.progress import transfer
    from tinkex.client.download import fetch_file

    options = invocation(context)
    with options.rest() as client:
        url = client.export_session_trace(session_id).result()
    if url_only:
        if options.form == "json":
            output.show_json({"session_id": session_id, "url": url})
        else:
            print(url)
        return
    target = file or Path(f"{session_id}.pftrace")
    with transfer(target.name) as progress:
        written = fetch_file(url, target, on_progress=progress)
    value = {"session_id": session_id, "destination": str(target), "file_size_bytes": written}
    pairs = [
        ("Session ID", session_id),
        ("Written to", str(target)),
        ("Size", output.size(written)),
    ]
    output.show_properties(options.form, value, f"Trace Export: {session_id}", pairs)
