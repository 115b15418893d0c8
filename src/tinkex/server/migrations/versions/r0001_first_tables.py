"""Sessions, training runs, checkpoints and samplers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the first tables."""
    _make_sessions()
    _make_training_runs()
    _make_checkpoints()
    _make_samplers()


def downgrade() -> None:
    """Drop the first tables."""
    for table in ("samplers", "checkpoints", "training_runs", "sessions"):
        op.drop_table(table)


def _make_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("reason", sa.String),
        sa.Column("detail", sa.String),
        sa.Column("ended_at", sa.Float),
        sa.Column("sdk_version", sa.String),
        sa.Column("project_id", sa.String),
        sa.Column("display_name", sa.String),
        sa.Column("tags", sa.JSON, nullable=False),
        sa.Column("user_metadata", sa.JSON),
    )
    op.create_index("sessions_by_owner", "sessions", ["owner", "created_at"])


def _make_training_runs() -> None:
    op.create_table(
        "training_runs",
        sa.Column("run_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, sa.ForeignKey("sessions.session_id"), nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("base_model", sa.String, nullable=False),
        sa.Column("lora_rank", sa.Integer, nullable=False),
        sa.Column("train_attn", sa.Boolean, nullable=False),
        sa.Column("train_mlp", sa.Boolean, nullable=False),
        sa.Column("train_unembed", sa.Boolean, nullable=False),
        sa.Column("user_metadata", sa.JSON),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("last_request_at", sa.Float, nullable=False),
    )
    op.create_index("training_runs_by_owner", "training_runs", ["owner", "created_at"])
    op.create_index("training_runs_by_session", "training_runs", ["session_id"])


def _make_checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("checkpoint_number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String, sa.ForeignKey("training_runs.run_id"), nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("has_optimizer", sa.Boolean, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("user_metadata", sa.JSON),
        sa.UniqueConstraint("run_id", "kind", "name", name="checkpoints_by_path"),
    )
    op.create_index("checkpoints_by_owner", "checkpoints", ["owner", "created_at"])
    op.create_index("checkpoints_by_expiry", "checkpoints", ["expires_at"])


def _make_samplers() -> None:
    op.create_table(
        "samplers",
        sa.Column("sampler_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, sa.ForeignKey("sessions.session_id"), nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("base_model", sa.String, nullable=False),
        sa.Column("model_path", sa.String),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_index("samplers_by_session", "samplers", ["session_id"])
