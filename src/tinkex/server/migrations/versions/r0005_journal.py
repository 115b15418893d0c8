"""Accepted requests are kept, with snapshots of runs, and samplers know what they sample from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the journal and the snapshots' table; nothing that is there changes."""
    op.create_table(
        "journal",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.String, nullable=False, unique=True),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("operation", sa.String, nullable=False),
        sa.Column("seq_id", sa.Integer),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("accepted_at", sa.Float, nullable=False),
        sa.Column("dialect", sa.String, nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("lasting", sa.Boolean, nullable=False),
        sa.Column("generation", sa.Integer),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("message", sa.String),
        sa.Column("result", sa.LargeBinary),
        sa.Column("result_bytes", sa.Integer, nullable=False),
        sa.Column("kept", sa.Boolean, nullable=False),
        sa.Column("finished_at", sa.Float),
        sqlite_autoincrement=True,
    )
    op.create_index("journal_by_target", "journal", ["target"])
    op.create_index("journal_by_session", "journal", ["session_id"])
    op.create_table(
        "run_snapshots",
        sa.Column("model_id", sa.String, primary_key=True),
        sa.Column("generation", sa.Integer, primary_key=True),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("next_seq_id", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.add_column("samplers", sa.Column("run_id", sa.String))
    op.add_column(
        "samplers", sa.Column("inflight", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.add_column("samplers", sa.Column("clones", sa.Integer, nullable=False, server_default="0"))
    op.add_column("samplers", sa.Column("request_id", sa.String))
    op.add_column("checkpoints", sa.Column("request_id", sa.String))


def downgrade() -> None:
    """Take them away; what was accepted and not done is lost."""
    with op.batch_alter_table("checkpoints") as table:
        table.drop_column("request_id")
    with op.batch_alter_table("samplers") as table:
        for name in ("run_id", "inflight", "clones", "request_id"):
            table.drop_column(name)
    op.drop_table("run_snapshots")
    op.drop_table("journal")
