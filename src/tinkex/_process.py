"""What a process that is to serve for long does once it is ready."""

from __future__ import annotations

import gc
import threading

from tinkex._huge_pages import gather


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
