"""Note what listings find

The index finds orders that are gone by their buyer. On a large table it is built beforehand, with CONCURRENTLY.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reconciliation_findings",
        sa.Column("run_id", postgresql.UUID(as_uuid=True), nullable=False),
        sa.Column("allegro_order_id", sa.Text(collation="C"), nullable=False),
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("finding", sa.Text(), nullable=False, comment="how our copy differed from what Allegro has"),
        sa.Column(
            "cause",
            sa.Text(),
            nullable=False,
            comment="unannounced: the journal had not told; owed: it had, and the look was still to be made",
        ),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("cause IN ('unannounced', 'owed')", name=op.f("ck_reconciliation_findings_cause")),
        sa.CheckConstraint(
            "finding IN ('missing', 'stale', 'merged', 'gone')", name=op.f("ck_reconciliation_findings_finding")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["sync_history.run_id"],
            name=op.f("fk_reconciliation_findings_run_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_token_id"], ["user_tokens.id"], name=op.f("fk_reconciliation_findings_user_token_id")
        ),
        sa.PrimaryKeyConstraint("run_id", "allegro_order_id", name=op.f("pk_reconciliation_findings")),
    )
    op.create_index(
        "ix_reconciliation_findings_user_token_id", "reconciliation_findings", ["user_token_id", "allegro_order_id"]
    )
    op.create_index(
        "ix_orders_gone",
        "orders",
        ["user_token_id", "buyer_login"],
        postgresql_where=sa.text("gone_at IS NOT NULL"),
        if_not_exists=True,
    )


def downgrade() -> None:
    op.drop_index("ix_orders_gone", table_name="orders")
    op.drop_table("reconciliation_findings")
