"""`tinkex serve`: makes flags of the settings, prints the banner, writes the ready file.

The settings are `cli/server_settings.py`'s, the server itself is `tinkex.server`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tinkex._files import write_whole
from tinkex.cli.flags import given_flags, keyword, take_settings
from tinkex.cli.server_settings import server_schema
from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from tinkex.server.run import ServerInfo

_CONFIG = typer.Option(
    "--config",
    envvar="TINKEX_SERVE_CONFIG",
    metavar="FILE",
    help="TOML file of settings; the environment (TINKEX_SERVE_...) and flags go before it.",
)
_READY_FILE = typer.Option(
    "--ready-file",
    envvar="TINKEX_SERVE_READY_FILE",
    metavar="FILE",
    help="Write url, api_key, pid and base_models here as JSON once serving.",
)
_UNTIL_STDIN_ENDS = typer.Option(
    "--until-stdin-ends",
    help="Stop when standard input ends: with the program that started this server.",
)
_CHECK = typer.Option(
    "--check", help="Verify the data folder instead, as `tinkex check` does, and exit."
)
_OTHER_FILES = 1024
"""Open at a time besides connections: the database, checkpoints, downloads."""
_METAVARS = {"base_models": "PATH_OR_ID", "aliases": "NAME=ID", "allowed_hosts": "NAME"}


def serve(*, context: typer.Context, **given: Any) -> None:
    """Serve the Tinker API: train LoRA adapters and sample, for many users over one base model.

    Each setting is a flag, a variable and a key of the file: flags go before variables, those
    before the file. docs/guides/server-settings.md lists all three.
    """
    from tinkex.cli.extras import require_server_extra

    require_server_extra("tinkex serve")
    import asyncio

    from tinkex._clock import SystemClock
    from tinkex._process import allow_files, settle_down
    from tinkex.cli.openmp import wait_briefly

    wait_briefly()
    from tinkex.server.run import serve as run_server  # brings PyTorch

    file, ready_file, check, until_stdin_ends = (
        given.pop(name) for name in ("config", "ready_file", "check", "until_stdin_ends")
    )
    if until_stdin_ends:
        stop_with_stdin()
    if ready_file is not None:
        forget_ready_file(ready_file)
    flags = given_flags(given)
    config = server_schema().resolve(flags, file=file, fallbacks={"data_dir": default_data_dir()})
    if check:
        from tinkex.cli.data import check_and_exit

        check_and_exit(context, config.data_dir)

    def on_ready(info: ServerInfo) -> None:
        if ready_file is not None:
            write_ready_file(ready_file, info)
        show_banner(info, aliases=config.aliases)
        settle_down()

    wanted = config.limits.max_connections + _OTHER_FILES
    allowed = allow_files(wanted)
    if allowed < wanted:
        print(
            f"Warning: this process may have {allowed} files open, and {wanted} are wanted for "
            f"{config.limits.max_connections} connections and what lies on the disk. Raise the "
            "hard limit (`ulimit -Hn`, LimitNOFILE=), or lower max_connections.",
            file=sys.stderr,
        )
    asyncio.run(run_server(config, on_ready=on_ready, clock=SystemClock()))


take_settings(
    serve,
    [
        keyword("context", typer.Context),
        keyword("config", Path | None, _CONFIG),
        keyword("ready_file", Path | None, _READY_FILE),
        keyword("check", bool, _CHECK, default=False),
        keyword("until_stdin_ends", bool, _UNTIL_STDIN_ENDS, default=False),
    ],
    server_schema().settings.values(),
    _METAVARS,
)


def default_data_dir() -> Path:
    """Return the user's folder for tinkex's data, as the operating system places it."""
    from platformdirs import user_data_path

    return user_data_path("tinkex")


def stop_with_stdin() -> None:
    """Ask this process to stop when its standard input ends, also if its writer was killed."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="standard input", daemon=True).start()


def forget_ready_file(path: Path) -> None:
    """Remove what an earlier server wrote: whoever waits for the file waits for this one.

    Raises:
        ConfigurationError: no file can be written there, said before models are loaded.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError([f"the ready file {path} cannot be written: {error}"]) from error
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError(
            [f"the ready file {path} cannot be written: {path.parent} is closed"]
        )


def write_ready_file(path: Path, info: ServerInfo) -> None:
    """Write `path` with mode 0600, whole or not at all."""
    body = json.dumps(
        {
            "url": info.url,
            "api_key": info.api_key,
            "pid": info.pid,
            "base_models": list(info.base_models),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, body.encode())


def show_banner(info: ServerInfo, *, aliases: Mapping[str, str]) -> None:
    """Print the banner where there is somebody to read it: the server serves without, too."""
    if sys.stdout is None:  # closed by who started this
        return
    try:
        print_banner(info, aliases=aliases, show_key=sys.stdout.isatty())
    except OSError as error:  # a pipe whose reader has gone, a full disk
        print(f"Warning: nobody was told of {info.url}: {error}", file=sys.stderr)
        # what is left in the buffer would fail again at the interpreter's end, with a traceback
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def print_banner(info: ServerInfo, *, aliases: Mapping[str, str], show_key: bool) -> None:
    """Print what a user needs to connect; the key itself only where nothing records it."""
    key = info.api_key if show_key else f"in {info.api_key_path} (shown on a terminal only)"
    path = shlex.quote(str(info.api_key_path))  # macOS has a space in it
    assignment = info.api_key if show_key else f"$(head -n 1 {path})"
    lines = [
        "tinkex serves the Tinker API",
        f"  URL          {info.url}",
        f"  API key      {key}",
        f"  base models  {', '.join(info.base_models)}",
        *(f"  alias        {name} = {target}" for name, target in aliases.items()),
        f"  device       {info.device}, weights in {info.weight_dtype}",
        f"  data         {info.data_dir}",
        "",
        "Connect with:",
        f"  export TINKER_BASE_URL={info.url}",
        f"  export TINKER_API_KEY={assignment}",
        "Stop with Ctrl-C.",
    ]
    print("\n".join(lines), flush=True)
