"""Checkpoints can be public."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the mark; what is there already stays its owner's."""
    op.add_column(
        "checkpoints",
        sa.Column("public", sa.Boolean, nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    """Take the mark away."""
    with op.batch_alter_table("checkpoints") as table:
        table.drop_column("public")
