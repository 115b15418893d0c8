"""Requests that ended, usage by the hour, and metrics of training steps."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    _make_requests()
    _make_usage_hours()
    _make_training_metrics()


def downgrade() -> None:
    """Drop the tables."""
    for table in ("training_metrics", "usage_hours", "requests"):
        op.drop_table(table)


def _make_requests() -> None:
    op.create_table(
        "requests",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("session_id", sa.String, nullable=False),
        sa.Column("source_id", sa.String, nullable=False),
        sa.Column("operation", sa.String, nullable=False),
        sa.Column("accepted_at", sa.Float, nullable=False),
        sa.Column("began_at", sa.Float),
        sa.Column("finished_at", sa.Float, nullable=False),
        sa.Column("engine_s", sa.Float, nullable=False),
        sa.Column("amounts", sa.JSON, nullable=False),
        sa.Column("error", sa.String),
    )
    op.create_index("requests_by_session", "requests", ["session_id", "number"])


def _make_usage_hours() -> None:
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.Integer, primary_key=True),
        sa.Column("owner", sa.String, primary_key=True),
        sa.Column("key_id", sa.String, primary_key=True),
        sa.Column("session_id", sa.String, primary_key=True),
        sa.Column("source_id", sa.String, primary_key=True),
        sa.Column("base_model", sa.String, primary_key=True),
        *(
            sa.Column(name, sa.Integer, nullable=False)
            for name in (
                "forward_tokens",
                "forward_backward_tokens",
                "prefilled_tokens",
                "cached_tokens",
                "sampled_tokens",
                "checkpoints",
                "requests",
                "failed_requests",
            )
        ),
        sa.Column("training_s", sa.Float, nullable=False),
        sa.Column("sampling_s", sa.Float, nullable=False),
    )
    op.create_index("usage_hours_by_owner", "usage_hours", ["owner", "hour"])
    op.create_index("usage_hours_by_key", "usage_hours", ["key_id"])


def _make_training_metrics() -> None:
    op.create_table(
        "training_metrics",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String, nullable=False),
        sa.Column("request_id", sa.String, nullable=False, unique=True),
        sa.Column("operation", sa.String, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )
    op.create_index("training_metrics_by_run", "training_metrics", ["run_id", "number"])
    op.create_index("training_metrics_by_time", "training_metrics", ["at"])
