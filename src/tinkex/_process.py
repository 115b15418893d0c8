"""What a process that is to serve for long does as it starts, and once it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tinkex._huge_pages import gather

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


async def in_a_thread_that_ends(work: Callable[[], R]) -> R:
    """Load a model, off the event loop.

    A thread's OpenMP threads stay for as long as it does, and beside them the engine's own sleep
    and wake at every product (docs/log.md).
    """
    with ThreadPoolExecutor(1, thread_name_prefix="loading") as loader:
        return await asyncio.get_running_loop().run_in_executor(loader, work)


def allow_files(count: int) -> int:
    """Let the process have so many files open at a time, as far as the system lets it.

    Each connection is one, and most shells and services begin with a soft limit of 1024, of which
    only the hard one is meant to bind. For who owns the whole process.

    Returns:
        How many it may have: fewer where the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        # macOS refuses some numbers below its hard limit: then what was stays.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return count if soft == resource.RLIM_INFINITY else soft


def settle_down() -> threading.Thread:
    """Prepare for a long life: for who owns the whole process, to be called once.

    What is there by now stays. So the interpreter leaves it out when it searches for cycles, which
    would stop everything now and then, beside PyTorch for more than 100 ms (docs/log.md), and the
    kernel puts it into huge pages, as a thread asks it to: returned, for who waits for its end.
    """
    gc.collect()
    gc.freeze()
    gathering = threading.Thread(target=gather, name="huge pages", daemon=True)
    gathering.start()
    return gathering
