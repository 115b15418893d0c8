"""What lies where in a data folder.

Owns the names, so that what serves a folder and what checks, copies or restores it agree.

    tinkex.sqlite3, -wal, -shm   the database
    tinkex.sqlite3-seal          its sum, between a stop and the next start
    checkpoints/                 checkpoints, as `blobs` lays them out
    snapshots/                   live runs and samplers, as `durable.snapshots` lays them out
    api_key, url_secret, ...     secrets, each a file
    lock                         held by the server that uses the folder
    spill/                       a cache, erased at each start
"""

from __future__ import annotations

DATABASE_NAME = "tinkex.sqlite3"
CHECKPOINTS_NAME = "checkpoints"
SNAPSHOTS_NAME = "snapshots"
PINNED_PREFIX = ".pinned-"
"""Begins the name of a folder of links that a running backup holds files by."""
LOCK_NAME = "lock"
SPILL_NAME = "spill"
SEAL_SUFFIX = "-seal"
"""Ends the name of what tells whether a database changed since its server stopped."""
DATABASE_FILES = (
    DATABASE_NAME,
    f"{DATABASE_NAME}-wal",
    f"{DATABASE_NAME}-shm",
    f"{DATABASE_NAME}{SEAL_SUFFIX}",
)
STAGING_PREFIX = ".staging-"
"""Begins the name of a folder that a save is writing."""
REPLACED_PREFIX = ".replaced-"
"""Begins the name of a folder that a save is about to replace."""
