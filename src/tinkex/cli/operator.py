"""The accounts of a data folder, for the commands of whoever runs its server.

Owns opening them. Whoever can write the folder is the operator: no key is asked for. The server may
run meanwhile; it sees every change with its next request.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinkex.cli.serve import default_data_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from tinkex.server.accounts.directory import Directory

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="TINKEX_SERVE_DATA_DIR",
        metavar="FOLDER",
        help="The server's data folder; default: the one that `tinkex serve` takes.",
    ),
]


@contextmanager
def opened_directory(data_dir: Path | None, command: str) -> Iterator[Directory]:
    """Open the accounts of a data folder, of a server that runs or not.

    Raises:
        ConfigurationError: no server has used the folder, or another version does.
    """
    from tinkex.cli.extras import require_server_extra

    require_server_extra(command)
    from tinkex._clock import SystemClock
    from tinkex.server.accounts.directory import Directory
    from tinkex.server.accounts.store import AccountStore

    store = AccountStore.of_folder(data_dir or default_data_dir())
    try:
        yield Directory(store, SystemClock())
    finally:
        store.close()


def day(moment: datetime | None) -> str:
    """Write a moment as its day, for tables; nothing for none."""
    return "" if moment is None else moment.date().isoformat()
