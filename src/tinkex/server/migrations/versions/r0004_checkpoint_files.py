"""Checkpoints keep a record of their files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; what is there already has no record."""
    op.add_column("checkpoints", sa.Column("files", sa.JSON))


def downgrade() -> None:
    """Take the column away."""
    with op.batch_alter_table("checkpoints") as table:
        table.drop_column("files")
