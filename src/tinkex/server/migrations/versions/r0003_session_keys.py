"""Sessions know the key that began them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; until now each key was an account, whose id was the key's."""
    op.add_column("sessions", sa.Column("key_id", sa.String))
    op.execute("UPDATE sessions SET key_id = owner")


def downgrade() -> None:
    """Take the column away."""
    with op.batch_alter_table("sessions") as table:
        table.drop_column("key_id")
