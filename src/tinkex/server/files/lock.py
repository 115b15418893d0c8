"""The lock of a data folder: one server at a time uses it.

Owns the lock alone. It belongs to the open file, so it ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError
from tinkex.server.files.layout import LOCK_NAME
from tinkex.server.files.private import own_data_dir, private_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Keep a second server out of a data folder.

    Raises:
        ConfigurationError: another one uses it.
    """
    own_data_dir(data_dir)
    private_file(data_dir / LOCK_NAME)
    with (data_dir / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"another server uses the data folder {data_dir}: stop it, or choose another"
            ) from error
        yield


def in_use(data_dir: Path) -> bool:
    """Whether a server uses a data folder just now.

    It holds the lock for an instant when none does: ask only where the answer matters.
    """
    try:
        with (data_dir / LOCK_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False  # a backup, or never served
    except BlockingIOError:
        return True
    return False
