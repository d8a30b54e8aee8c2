"""Count what runs spend and miss

A run of a list has spent the requests of its walk and those of the looks that it caused. A walk tells its own sum,
again and again: what it has told is kept, so that the rest is not lost in it. A walk that has shown everything up to
the end of its window stands there. And orders that a run was to look at and never will are counted.

Of the schedules that are due, those of sellers that fail are found by an index of their own. And that a topic of states
is torn is remembered.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "run_windows",
        sa.Column(
            "requests",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="what the walk has told that it spent; the run has that of its looks besides",
        ),
    )
    # Of what has ended nobody asks for either.
    op.execute(
        """
        UPDATE run_windows w
           SET requests = r.requests, position = CASE WHEN w.finished THEN w.bought_to ELSE w.position END
          FROM sync_history r
         WHERE r.run_id = w.run_id AND (r.completed_at IS NULL OR NOT w.finished)
        """
    )
    op.add_column(
        "sync_history",
        sa.Column(
            "orders_unseen",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="so many orders at least it was to look at and cannot: dead letters, or too many at a time",
        ),
    )
    op.add_column(
        "order_state_topic",
        sa.Column(
            "is_torn",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="some of what was published cannot be read: once all is published, all is published again",
        ),
    )
    op.drop_index("ix_active_sync_schedules_next_run", table_name="active_sync_schedules")
    for name, condition in (("well", "consecutive_failures = 0"), ("failing", "consecutive_failures > 0")):
        op.create_index(
            f"ix_active_sync_schedules_{name}",
            "active_sync_schedules",
            ["next_run"],
            postgresql_where=sa.text(f"status = 'active' AND {condition}"),
        )


def downgrade() -> None:
    for name in ("failing", "well"):
        op.drop_index(f"ix_active_sync_schedules_{name}", table_name="active_sync_schedules")
    op.create_index(
        "ix_active_sync_schedules_next_run",
        "active_sync_schedules",
        ["next_run"],
        postgresql_where=sa.text("status = 'active'"),
    )
    op.drop_column("order_state_topic", "is_torn")
    op.drop_column("sync_history", "orders_unseen")
    op.drop_column("run_windows", "requests")
