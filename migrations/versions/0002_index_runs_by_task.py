"""Index runs by their task

Removing an aged task looks for its runs (ON DELETE SET NULL), and stopping one does as well.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_sync_history_task_id", "sync_history", ["task_id"])


def downgrade() -> None:
    op.drop_index("ix_sync_history_task_id", table_name="sync_history")
