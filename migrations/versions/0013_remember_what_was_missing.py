"""Remember that an order was missing before it is stored

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "missing_orders",
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("allegro_order_id", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment=(
                "the last look that found nothing where we have no copy: an older look that comes later shows the past"
            ),
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_token_id"], ["user_tokens.id"], name=op.f("fk_missing_orders_user_token_id_user_tokens")
        ),
        sa.PrimaryKeyConstraint("user_token_id", "allegro_order_id", name=op.f("pk_missing_orders")),
    )
    op.create_index("ix_missing_orders_observed_at", "missing_orders", ["observed_at"])


def downgrade() -> None:
    op.drop_table("missing_orders")
