"""Memory in huge pages: which, and that nothing else changes."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from tinkex import _huge_pages
from tinkex._huge_pages import gather, resident

HUGE = 2 << 20
MAPS = """\
00200000-00600000 rw-p 00000000 00:00 0                          [heap]
00700000-00b00000 rw-p 00000000 00:00 0
01000000-01200000 r--p 00000000 00:00 0
01200000-01400000 rw-s 00000000 00:00 0
01400000-01600000 rw-p 00000000 fe:00 1234                       /lib/libc.so.6
01600000-01800000 rw-p 00000000 00:00 0                          [stack]
01800000-01a00000 rw-p 00000000 00:00 0                          [anon:arena]
"""


def address_of(region):
    return ctypes.addressof(ctypes.c_char.from_buffer(region))


def in_huge_pages(address):
    """How many bytes of the mapping around an address are in huge pages, as the kernel says."""
    inside = False
    with Path("/proc/self/smaps").open(encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                start, end = (int(word, 16) for word in words[0].split("-"))
                inside = start <= address < end
            elif inside and words[0] == "AnonHugePages:":
                return int(words[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.mark.skipif(sys.platform != "linux", reason="others are asked otherwise, or not at all")
def test_memory_in_use_is_gathered_and_says_the_same_and_what_is_not_stays_unused():
    plain = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    used, unused = (mmap.mmap(-1, 4 * HUGE, flags=plain) for _ in range(2))
    for region in (used, unused):
        region.madvise(mmap.MADV_NOHUGEPAGE)
    content = bytes(range(256)) * (len(used) // 256)
    used[:] = content
    for region in (used, unused):
        region.madvise(mmap.MADV_HUGEPAGE)  # as the kernel's default may be
    assert resident(address_of(used), len(used)) == len(used)
    joined = gather()
    assert used[:] == content
    assert resident(address_of(unused), len(unused)) == 0
    if not joined:
        pytest.skip("this kernel has no huge pages, or an administrator wants none")
    assert joined % HUGE == 0
    assert in_huge_pages(address_of(used)) >= 2 * HUGE


def test_only_private_memory_of_no_file_is_gathered():
    found = [hex(start) for start in _huge_pages._ranges(MAPS, HUGE)]
    assert found == ["0x200000", "0x400000", "0x800000", "0x1800000"]


def test_process_that_settles_down_leaves_what_is_there_out_of_searches_for_cycles():
    program = """if True:
        import gc
        from tinkex._process import settle_down
        before = len(gc.get_objects())
        gathering = settle_down()
        print(before, gc.get_freeze_count(), len(gc.get_objects()))
        gathering.join()
        """
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    before, frozen, searched = map(int, told.stdout.split())
    assert frozen > 0.9 * before
    assert searched < 0.1 * before
    assert told.stderr == ""


@pytest.mark.parametrize("enabled", ["always madvise [never]\n", None])
def test_administrator_that_wants_none_gets_none(tmp_path, monkeypatch, enabled):
    monkeypatch.setattr(_huge_pages, "_SETTINGS", tmp_path)
    (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n")
    if enabled is not None:
        (tmp_path / "enabled").write_text(enabled)
    assert gather() == 0


def test_where_nobody_tells_what_memory_there_is_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(_huge_pages, "_MAPS", tmp_path / "maps")
    assert gather() == 0
