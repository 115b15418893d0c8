"""Having the kernel put this process's memory into huge pages.

A core remembers where a thousand or two of its pages are. An interpreter and a small model have
ten times as many; what is not remembered is looked up in tables, in a virtual machine in two sets
of them. Linux joins 512 pages that lie side by side into one where it is asked to (`MADV_COLLAPSE`,
since Linux 6.1); where it cannot, or an administrator wants none, nothing happens.
"""

from __future__ import annotations

import ctypes
import re
from mmap import PAGESIZE
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MAPS = Path("/proc/self/maps")
_MADV_COLLAPSE = 25
_PLAIN = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ 0 *(?:\[heap\]|\[anon:.*\])?$")
"""A private mapping of no file; no stack, which grows downwards."""


def gather() -> int:
    """Join this process's pages as far as they lie together.

    Blocks for a moment, without Python's lock. Half of each huge page at least is in use already,
    so memory grows by less than what is joined.

    Returns:
        Bytes that are in huge pages now.
    """
    try:
        size, maps = _huge_page_bytes(), _MAPS.read_text()
    except (OSError, ValueError):
        return 0  # no Linux, or one that tells this to nobody
    if not size:
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    joined = 0
    for start in _ranges(maps, size):
        if resident(start, size) >= size // 2 and libc.madvise(start, size, _MADV_COLLAPSE) == 0:
            joined += size
    return joined


def resident(start: int, size: int) -> int:
    """Count the bytes of a range, from the beginning of a page on, that are in memory."""
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    told = ctypes.create_string_buffer(-(-size // PAGESIZE))
    if libc.mincore(start, size, told) != 0:
        return 0  # it is there no more
    return PAGESIZE * sum(byte & 1 for byte in told.raw)


def _huge_page_bytes() -> int:
    """Size of a huge page; 0 where an administrator wants none."""
    wanted = "[never]" not in (_SETTINGS / "enabled").read_text()
    return int((_SETTINGS / "hpage_pmd_size").read_text()) if wanted else 0


def _ranges(maps: str, size: int) -> Iterator[int]:
    """Give the beginnings of all ranges that may become a huge page."""
    for line in maps.splitlines():
        found = _PLAIN.match(line)
        if found is not None:
            start, end = (int(address, 16) for address in found.groups())
            yield from range(-(-start // size) * size, end // size * size, size)
