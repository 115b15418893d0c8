"""Files and folders for their owner's eyes alone, whatever the umask.

Owns modes: folders 0700, files 0600. Names and contents are others'.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_folder(path: Path) -> None:
    """Make a folder, or take one that is there, and close it to everybody else.

    Raises:
        OSError: it is somebody else's, is no folder, or the disk refused.
    """
    path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    if path.stat().st_mode & _OTHERS:
        path.chmod(FOLDER_MODE)


def own_data_dir(path: Path) -> None:
    """Make a server's data folder, or take one that is there, and close it to everybody else.

    Raises:
        ConfigurationError: it is somebody else's, is no folder, or the disk refused.
    """
    try:
        private_folder(path)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"the folder {path} cannot be made, a file is in its place: choose one of your own"
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"the folder {path} cannot be made private ({error.strerror}): choose one of your own"
        ) from error


def private_file(path: Path) -> None:
    """Make an empty file when there is none, and close it to everybody else.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, FILE_MODE)
    try:
        if os.fstat(descriptor).st_mode & _OTHERS:
            os.fchmod(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


def make_private(folder: Path) -> None:
    """Close a folder and all below it to everybody else.

    Raises:
        OSError: the disk refused.
    """
    folder.chmod(FOLDER_MODE)
    for entry in folder.rglob("*"):
        if not entry.is_symlink():
            entry.chmod(FOLDER_MODE if entry.is_dir() else FILE_MODE)


def open_to_others(path: Path) -> bool:
    """Whether anybody but the owner may read, write or enter it."""
    return bool(path.lstat().st_mode & _OTHERS) and not path.is_symlink()
