"""The commands of the command line, and the options that stand before them.

Commands import what they need when they run, so that `--help` and completion stay fast.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tinkex.cli import account, auth, billing, checkpoint, key, model, run, session
from tinkex.cli.connect import Invocation
from tinkex.cli.data import backup, check, restore
from tinkex.cli.demo import demo
from tinkex.cli.mesh.app import app as mesh
from tinkex.cli.run_metrics import metrics
from tinkex.cli.sampling import chat, sample
from tinkex.cli.serve import serve
from tinkex.cli.train import train
from tinkex.cli.usage import usage

_EPILOG = (
    "Exit codes: 0 success, 1 an error that the message explains, 2 wrong usage, 130 interrupted. "
    "The server and the key come from TINKEX_BASE_URL and TINKEX_API_KEY (or TINKER_...), or from "
    "`tinkex auth login`."
)

app = typer.Typer(
    name="tinkex",
    help="The open, self-hosted home of the Tinker fine-tuning API.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # plain help: boxes drawn by rich would double the time that help takes
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(check)
app.command()(backup)
app.command()(restore)
app.command()(demo)
app.command()(train)
app.command()(sample)
app.command()(chat)
app.command()(usage)
run.app.command("metrics")(metrics)
for name, group in {
    "account": account.app,
    "auth": auth.app,
    "billing": billing.app,
    "checkpoint": checkpoint.app,
    "key": key.app,
    "mesh": mesh,
    "model": model.app,
    "run": run.app,
    "session": session.app,
}.items():
    app.add_typer(group, name=name)


def _show_version(wanted: bool) -> None:
    if wanted:
        _print_version()
        raise typer.Exit


@app.callback()
def global_options(
    context: typer.Context,
    form: Annotated[
        str, typer.Option("--format", "-f", help="table for people, json for programs.")
    ] = "table",
    base_url: Annotated[
        str | None, typer.Option(help="URL of the server; default: TINKEX_BASE_URL.")
    ] = None,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    if form not in {"table", "json"}:
        raise typer.BadParameter(f"{form!r} is neither table nor json", param_hint="--format")
    context.obj = Invocation("json" if form == "json" else "table", base_url)


@app.command()
def version(context: typer.Context) -> None:
    """Print the version."""
    found = context.find_object(Invocation)
    if found is not None and found.form == "json":
        from tinkex._version import __version__
        from tinkex.cli.output import show_json

        show_json({"name": "tinkex", "version": __version__})
    else:
        _print_version()


def _print_version() -> None:
    from tinkex._version import __version__

    print(f"tinkex {__version__}")
