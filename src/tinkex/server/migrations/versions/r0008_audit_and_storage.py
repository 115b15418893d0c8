"""An audit log, and how long each checkpoint lay on the disk."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; checkpoints that are there are stored since they were made."""
    op.create_table(
        "storage_spans",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("began_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float),
    )
    op.create_index("storage_spans_by_path", "storage_spans", ["run_id", "kind", "name"])
    op.create_index("storage_spans_by_end", "storage_spans", ["ended_at"])
    op.execute(
        "INSERT INTO storage_spans (run_id, kind, name, owner, size_bytes, began_at) "
        "SELECT run_id, kind, name, owner, size_bytes, created_at FROM checkpoints"
    )
    op.create_table(
        "audit_log",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("key_id", sa.String),
        sa.Column("resource", sa.String, nullable=False),
        sa.Column("event", sa.String, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("audit_log_by_time", "audit_log", ["at"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("audit_log")
    op.drop_table("storage_spans")
