"""Count what runs spend and miss

A run of a list has spent the requests of its walk and those of the looks that it caused. A walk tells its own sum,
again and again: what it has told is kept, so that the rest is not lost in it. A walk that has shown everything up to
the end of its window stands there. And orders that a run was to look at and never will are counted.

Of the schedules that are due, those of sellers that fail are found by an index of their own. And how
often the topic of states is to be filled again is remembered.

Revision ID: 0014
Revises: 0013
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


_COLUMNS: tuple[tuple[str, str, sa.types.TypeEngine[Any], str, str], ...] = (
    (
        "run_windows",
        "requests",
        sa.BigInteger(),
        "0",
        "what the walk has told that it spent; the run has that of its looks besides",
    ),
    (
        "sync_history",
        "orders_unseen",
        sa.BigInteger(),
        "0",
        "so many orders at least it was to look at and cannot: dead letters, or too many at a time",
    ),
    (
        "order_state_topic",
        "passes_left",
        sa.Integer(),
        "0",
        "so often all is published again after this time: some of it may lie where nobody can read it",
    ),
)


def upgrade() -> None:
    for table, name, kind, default, comment in _COLUMNS:
        column = sa.Column(name, kind, server_default=sa.text(default), nullable=False, comment=comment)
        op.add_column(table, column)
    # Of what has ended nobody asks for either; what has not is found by partial indexes, among millions of runs.
    op.execute(
        """
        UPDATE run_windows w
           SET requests = r.requests, position = CASE WHEN w.finished THEN w.bought_to ELSE w.position END
          FROM sync_history r
         WHERE r.run_id = w.run_id
           AND w.run_id IN (SELECT run_id FROM run_windows WHERE NOT finished
                             UNION SELECT run_id FROM sync_history WHERE completed_at IS NULL)
        """
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
    for table, name, *_ in _COLUMNS:
        op.drop_column(table, name)
