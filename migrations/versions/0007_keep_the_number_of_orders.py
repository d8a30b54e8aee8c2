"""Keep the number of orders

Sellers that are there already get a null: the poller counts their orders, one seller at a time.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "journal_cursors",
        sa.Column(
            "orders_stored",
            sa.BigInteger(),
            nullable=True,
            comment="rows in orders, kept by the writer; null: to be counted (services.poller.housekeeping)",
        ),
    )
    op.alter_column("journal_cursors", "orders_stored", server_default=sa.text("0"))


def downgrade() -> None:
    op.drop_column("journal_cursors", "orders_stored")
