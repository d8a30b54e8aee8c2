"""Follow a trace from the request to what it causes

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TABLES = ("device_authorizations", "task_history")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(
            table,
            sa.Column(
                "traceparent", sa.Text(), comment="the span of the request, if it was traced (W3C Trace Context)"
            ),
        )


def downgrade() -> None:
    for table in _TABLES:
        op.drop_column(table, "traceparent")
