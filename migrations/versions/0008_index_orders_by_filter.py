"""Index orders by what they are filtered by

Each filter of the list walks an index that is ordered by purchase; exports walk a seller's orders by id.

Revision ID: 0008
Revises: 0007
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_INDEXES = {
    "ix_orders_user_token_id_id": ["user_token_id", "id"],
    "ix_orders_user_token_id_status_bought_at": ["user_token_id", "status", "bought_at", "id"],
    "ix_orders_user_token_id_fulfillment_status_bought_at": [
        *("user_token_id", "fulfillment_status", "bought_at", "id"),
    ],
    "ix_orders_user_token_id_buyer_login_bought_at": ["user_token_id", "buyer_login", "bought_at", "id"],
}


def upgrade() -> None:
    # On a large table they are built beforehand (changelog).
    for name, columns in _INDEXES.items():
        op.create_index(name, "orders", columns, if_not_exists=True)
    op.drop_index("ix_orders_user_token_id_buyer_login", table_name="orders")


def downgrade() -> None:
    op.create_index("ix_orders_user_token_id_buyer_login", "orders", ["user_token_id", "buyer_login"])
    for name in _INDEXES:
        op.drop_index(name, table_name="orders")
