"""Ask for sellers' logins until they are known

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "user_tokens",
        sa.Column(
            "login_after", sa.DateTime(timezone=True), comment="when Allegro is next asked for the login; null: known"
        ),
    )
    op.create_index(
        "ix_user_tokens_login_after",
        "user_tokens",
        ["login_after"],
        postgresql_where=sa.text("login_after IS NOT NULL"),
    )
    op.execute("UPDATE user_tokens SET login_after = now() WHERE seller_login IS NULL AND refresh_token IS NOT NULL")


def downgrade() -> None:
    op.drop_index("ix_user_tokens_login_after", table_name="user_tokens")
    op.drop_column("user_tokens", "login_after")
