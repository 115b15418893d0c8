"""Where the mesh's files lie on this machine, and who writes them.

Owns the folders' names, the ready file of a running endpoint, and a user's session file. Both files
hold secrets: they are written whole or not at all, for their owner's eyes alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
        workers: names of their folders.
        url: only of what serves this, without `/v1`; None: of any.
    """
    for path in (folder, *(folder / worker for worker in workers)):
        ready = read_private(path / READY_NAME)
        if ready is not None and url in (None, ready.get("url")):
            return ready
    return None


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
        self._written: list[Path] = []

    def write(self, content: dict[str, Any]) -> None:
        """Write all of them."""
        for path in self._paths:
            write_private(path, content)
            self._written.append(path)

    def remove(self) -> None:
        """Remove what was written; another process's file of the same name stays."""
        while self._written:
            self._written.pop().unlink(missing_ok=True)


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
