"""Where the mesh's files lie on this machine, and who writes them.

Owns the folders' names, the ready file of a running endpoint, and a user's session file. Both files
hold secrets: they are written whole or not at all, for their owner's eyes alone. A ready file is
believed while the process that wrote it has it locked: one that was killed leaves it behind, and
its port, or its process id, may be somebody else's by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from tinkex.errors import ConfigurationError, InputError

LOCAL_NAME = "local"
"""Folder, in the mesh's, of the network that `tinkex mesh up` runs: apart from other workers'."""
READY_NAME = "ready.json"
SESSION_NAME = "session.json"
DAY_S = 86_400.0

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="TINKEX_MESH_DATA_DIR",
        metavar="FOLDER",
        help="Folder of the mesh's files; default: in your user data folder.",
    ),
]


def mesh_dir(given: Path | None) -> Path:
    """Return the folder of the mesh's files."""
    if given is not None:
        return given
    from platformdirs import user_data_path

    return user_data_path("tinkex") / "mesh"


def with_place(context: typer.Context, command: str) -> str:
    """Write a command that is to be typed next: for the endpoint and folder given to this one."""
    for name, flag in (("url", "--url"), ("data_dir", "--data-dir")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":  # else it is found as it was now
            command += f" {flag} {shlex.quote(str(context.params[name]))}"
    return command


def worker_dir(folder: Path, role: str, name: str | None) -> Path:
    """Return a worker's own folder in the mesh's.

    Raises:
        InputError: the name is no name of a folder.
    """
    if name is None:
        return folder / role
    if not name.strip(".") or Path(name).name != name:
        raise InputError(f"{name!r} cannot name a worker: it is to be one folder's name")
    return folder / name


def find_ready(
    folder: Path, workers: Sequence[str], *, url: str | None = None
) -> dict[str, Any] | None:
    """Read the ready file of what runs: of `tinkex mesh up`, else of the first of these workers.

    Args:
        folder: the mesh's.
        workers: roles; a worker's folder is called by its own, or by the name that it was given.
        url: only of what serves this, without `/v1`; None: of any.
    """
    usual = (folder, *(folder / worker for worker in workers))
    named = [path.parent for path in sorted(folder.glob(f"*/{READY_NAME}"))]
    for path in (*usual, *(one for one in named if one not in usual)):
        ready = read_ready(path / READY_NAME)
        if ready is None or url not in (None, ready.get("url")):
            continue
        if path in usual or ready.get("role") in workers:
            return ready
    return None


def read_ready(path: Path) -> dict[str, Any] | None:
    """Read a ready file; None where there is none, or its process has ended.

    Raises:
        ConfigurationError: it holds something else.
    """
    return read_private(path) if is_running(path) else None


def is_running(path: Path) -> bool:
    """Whether the process that wrote a ready file is alive."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # it has the lock; or there are no locks here, or whoever reads it says why
    return False


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of mode 0600, whole or not at all."""
    from tinkex._files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


class ReadyFiles:
    """The ready files of this process: written once it serves, and only what it wrote removed.

    Args:
        paths: of each; None is left out.
    """

    def __init__(self, *paths: Path | None) -> None:
        self._paths = [path for path in paths if path is not None]
        self._written: list[tuple[Path, IO[bytes]]] = []

    def forget(self) -> None:
        """Remove what a process left that was killed: who waits for a file waits for this one's.

        Raises:
            ConfigurationError: no file can be written there, said before models are loaded.
        """
        for path in self._paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                if path.is_dir() or not is_running(path):
                    path.unlink(missing_ok=True)
                refused = None if os.access(path.parent, os.W_OK) else f"{path.parent} is closed"
            except OSError as error:
                refused = str(error)
            if refused is not None:
                raise ConfigurationError(f"the ready file {path} cannot be written: {refused}")

    def write(self, content: dict[str, Any]) -> None:
        """Write all of them."""
        for path in self._paths:
            self._written.append((path, _write_held(path, content)))

    def remove(self) -> None:
        """Remove what was written; another process's file of the same name stays."""
        while self._written:
            path, file = self._written.pop()
            with file, contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    path.unlink()


def _write_held(path: Path, content: dict[str, Any]) -> IO[bytes]:
    """Write a ready file, and have it locked from the moment on at which it is there."""
    coming = path.with_name(f".{path.name}.{os.getpid()}")
    write_private(coming, content)
    file = coming.open("r+b")
    try:
        with contextlib.suppress(OSError):  # no locks here: then it is believed as it stands
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        coming.replace(path)
    except OSError:
        file.close()
        coming.unlink()
        raise
    return file


def read_private(path: Path) -> dict[str, Any] | None:
    """Read such a file; None where there is none.

    Raises:
        ConfigurationError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}): delete it, then log in or start the worker again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} holds no JSON object: delete it")
    return content
