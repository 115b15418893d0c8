"""The command line's entry: how a typed error becomes an exit code.

Imports the commands inside of `main`: they take half a second, and Ctrl-C may come in it.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a typed error is a sentence on stderr, never a traceback."""
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(130)


def _run() -> None:
    import atexit
    import gc
    import io

    # As it ends, the interpreter searches all that is left for cycles, several times over: more
    # than a second with torch. All of that goes with the process.
    atexit.register(gc.freeze)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a reply may hold what a terminal cannot show
    # scripts ask for it; typer imports pydantic to call a command
    if sys.argv[1:] in (["version"], ["--version"]):
        from tinkex._version import __version__

        try:
            print(f"tinkex {__version__}", flush=True)
        except OSError as error:  # nobody reads it, or a full disk
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(1)
        return
    from tinkex.cli.app import app
    from tinkex.errors import TinkerError

    try:
        app()
    except (TinkerError, OSError) as error:  # of the latter: a file that cannot be read or written
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "tinkex":
            raise
        print(
            f"Error: this command needs the package {error.name}, which the client-only install "
            "leaves out: pip install 'tinkex[server,mesh]'",
            file=sys.stderr,
        )
        sys.exit(1)
