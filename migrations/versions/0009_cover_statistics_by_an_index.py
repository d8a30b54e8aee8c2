"""Cover statistics by an index

The index by purchase also holds what statistics add up, so that they read no order.

Revision ID: 0009
Revises: 0008
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # On a large table it is built beforehand (changelog).
    op.create_index(
        "ix_orders_by_purchase",
        "orders",
        ["user_token_id", "bought_at", "id"],
        postgresql_include=["status", "currency", "total_amount"],
        if_not_exists=True,
    )
    op.drop_index("ix_orders_user_token_id_bought_at", table_name="orders")


def downgrade() -> None:
    op.create_index("ix_orders_user_token_id_bought_at", "orders", ["user_token_id", "bought_at", "id"])
    op.drop_index("ix_orders_by_purchase", table_name="orders")
