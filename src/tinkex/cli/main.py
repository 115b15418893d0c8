"""The command line's entry: its commands, and how a typed error becomes an exit code.

Exit codes: 0 success, 1 a typed error of ours, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from tinkex.cli.demo import demo
from tinkex.cli.sampling import sample
from tinkex.cli.serve import serve
from tinkex.cli.train import train
from tinkex.errors import TinkerError

app = typer.Typer(
    name="tinkex",
    help="The open, self-hosted home of the Tinker fine-tuning API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(demo)
app.command()(train)
app.command()(sample)


@app.command()
def version() -> None:
    """Print the version."""
    from tinkex._version import __version__

    print(f"tinkex {__version__}")


def main() -> None:
    """Run the command line; a typed error is a sentence on stderr, never a traceback."""
    try:
        app()
    except TinkerError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
