"""Tell of outages of Allegro

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "allegro_outages",
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False, comment="most calls of a service fail since"),
        sa.Column(
            "seen_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="the service said so; an old row says nothing",
        ),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_allegro_outages")),
    )


def downgrade() -> None:
    op.drop_table("allegro_outages")
