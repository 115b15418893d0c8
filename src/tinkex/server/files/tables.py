"""The tables of what files are for.

Owns names and columns; `migrations` makes them. Times are unix seconds.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, String, Table

from tinkex.server.storage.tables import METADATA

ACCESS_TOKENS = Table(
    "weights_access_tokens",
    METADATA,
    Column("token_id", String, primary_key=True),
    Column("digest", String, nullable=False, unique=True),
    Column("run_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("weights_access_tokens_by_path", "run_id", "kind", "name"),
)
"""Who shows what has this digest may read that checkpoint."""
