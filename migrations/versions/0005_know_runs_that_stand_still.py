"""Know runs that stand still

When a run last came on; one without an end is unfinished, whether it runs or is stalled. And an index for the list of
all tasks, newest first.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "sync_history",
        sa.Column(
            "progress_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="last time it came on",
        ),
    )
    op.alter_column("sync_history", "completed_at", comment="null: it goes on, also while it is stalled")
    op.drop_index("ix_sync_history_running", table_name="sync_history")
    op.create_index(
        "ix_sync_history_unfinished",
        "sync_history",
        ["user_token_id"],
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    # On a large table it is built beforehand (changelog).
    op.create_index("ix_task_history_created_at", "task_history", ["created_at", "task_id"], if_not_exists=True)


def downgrade() -> None:
    op.drop_index("ix_task_history_created_at", table_name="task_history")
    op.drop_index("ix_sync_history_unfinished", table_name="sync_history")
    op.execute("UPDATE sync_history SET status = 'running' WHERE status = 'stalled' AND completed_at IS NULL")
    op.create_index(
        "ix_sync_history_running", "sync_history", ["user_token_id"], postgresql_where=sa.text("status = 'running'")
    )
    op.alter_column("sync_history", "completed_at", comment=None)
    op.drop_column("sync_history", "progress_at")
