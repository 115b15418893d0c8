"""Names of the moments at which a crash is most telling.

A server calls `reach` at each; it does nothing, unless a test has it end the process there.
"""

from __future__ import annotations

JOURNAL_WRITTEN = "between journal write and reply"
STEP_BEGUN = "inside an optimiser step"
SNAPSHOT_TAKEN = "a snapshot is copied, nothing of it on disk"
SNAPSHOT_RENAMED = "a snapshot is renamed, not committed"
SNAPSHOT_COMMITTED = "a snapshot is committed, older ones not removed"
CHECKPOINT_RENAMED = "a checkpoint is renamed, its row not written"
CHECKPOINT_RECORDED = "a checkpoint is recorded, its result not"
RESULT_READY = "before a result is delivered"
RESULT_SENT = "after a result was delivered"

POINTS = (
    JOURNAL_WRITTEN,
    STEP_BEGUN,
    SNAPSHOT_TAKEN,
    SNAPSHOT_RENAMED,
    SNAPSHOT_COMMITTED,
    CHECKPOINT_RENAMED,
    CHECKPOINT_RECORDED,
    RESULT_READY,
    RESULT_SENT,
)


def nothing(_point: str) -> None:
    """Reach a point, and go on."""
