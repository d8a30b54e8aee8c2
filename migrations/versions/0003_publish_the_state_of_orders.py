"""Publish the state of orders

The outbox of the topic `order-state`, and what is known of the topic. The one row begins with 0 in `republish_after`:
the orders that are stored already are published as well.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "order_state_outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("allegro_order_id", sa.Text(collation="C"), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_order_state_outbox")),
    )
    op.create_table(
        "order_state_topic",
        sa.Column("is_only_row", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column(
            "generation",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the topic's marker (a committed offset) says the same, or the topic is not the one we filled",
        ),
        sa.Column(
            "republish_after",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=True,
            comment="orders.id up to which every state was published again; null: all of them",
        ),
        sa.CheckConstraint("is_only_row", name=op.f("ck_order_state_topic_is_only_row")),
        sa.PrimaryKeyConstraint("is_only_row", name=op.f("pk_order_state_topic")),
    )
    op.execute("INSERT INTO order_state_topic DEFAULT VALUES")


def downgrade() -> None:
    op.drop_table("order_state_topic")
    op.drop_table("order_state_outbox")
