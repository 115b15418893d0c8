"""What a process computes, and how often it sleeps: from Linux's /proc, for processes of one user.

Owns the reading alone. Wall time on a machine that others use says how busy they are; processor
time says what a program costs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spent:
    """What a process and its threads have spent so far."""

    cpu_s: float
    """Processor time, of the user and of the system, in seconds."""
    sleeps: int
    """How often a thread had nothing to do, and so had to be woken."""

    def since(self, before: Spent) -> Spent:
        """What was spent after `before`."""
        return Spent(self.cpu_s - before.cpu_s, self.sleeps - before.sleeps)


def spent_by(pid: int) -> Spent:
    """Read what a process has spent; threads that have ended are not in it.

    Raises:
        OSError: there is no such process.
    """
    nanoseconds = sleeps = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds += int((thread / "schedstat").read_text().split()[0])
        for line in (thread / "status").read_text().splitlines():
            name, _, count = line.partition(":")
            sleeps += int(count) if name == "voluntary_ctxt_switches" else 0
    return Spent(nanoseconds / 1e9, sleeps)


def is_readable() -> bool:
    """Whether this machine tells: Linux does."""
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/schedstat").exists()
