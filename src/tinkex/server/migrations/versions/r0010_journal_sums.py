"""What the journal has of requests and results carries a checksum."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what is there already is taken as it is."""
    op.add_column("journal", sa.Column("body_sum", sa.LargeBinary))
    op.add_column("journal", sa.Column("result_sum", sa.LargeBinary))


def downgrade() -> None:
    """Take them away."""
    with op.batch_alter_table("journal") as table:
        table.drop_column("body_sum")
        table.drop_column("result_sum")
