"""Having the disk keep what was written, through a power cut."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def flush(path: Path) -> None:
    """Have the disk keep a file's contents, or a folder's names, now. Blocks.

    Raises:
        OSError: the disk refused.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have the disk keep a folder and all below it now.

    Raises:
        OSError: the disk refused.
    """
    for entry in folder.rglob("*"):
        flush(entry)
    flush(folder)
