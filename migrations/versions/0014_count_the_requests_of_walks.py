"""Count the requests of walks by themselves

A run of a list has spent those of its walk and those of the looks that it caused. A walk tells its own sum, again and
again: what it has told is kept, so that the rest is not lost in it. And a walk that has shown everything up to the end
of its window stands there.

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
    op.execute(
        """
        UPDATE run_windows w
           SET requests = r.requests,
               position = CASE WHEN r.status = 'completed' THEN w.bought_to ELSE w.position END
          FROM sync_history r WHERE r.run_id = w.run_id
        """
    )


def downgrade() -> None:
    op.drop_column("run_windows", "requests")
