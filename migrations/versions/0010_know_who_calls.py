"""Know who calls the API: keys, an audit log, and answers that are given again

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TIMESTAMP = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="never used twice: audit rows name keys"),
        sa.Column("public_id", sa.Text(), nullable=False, comment="the part of the key that finds this row"),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the key, which is stored nowhere"),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("user_ids", sa.ARRAY(sa.Text()), comment="the only users whose data it opens; null: all"),
        sa.Column("requests_per_minute", sa.Integer(), comment="null: as API_REQUESTS_PER_MINUTE says"),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", _TIMESTAMP),
        sa.Column("revoked_at", _TIMESTAMP),
        sa.Column("last_used_at", _TIMESTAMP, comment="to the minute"),
        sa.CheckConstraint("scope IN ('read', 'control', 'admin')", name=op.f("ck_api_keys_scope")),
        sa.CheckConstraint("requests_per_minute > 0", name=op.f("ck_api_keys_requests_per_minute")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("name", name=op.f("uq_api_keys_name")),
        sa.UniqueConstraint("public_id", name=op.f("uq_api_keys_public_id")),
    )
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("called_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False, comment="name of the API key"),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("parameters", JSONB(), nullable=False, comment="of the path"),
        sa.Column("user_id", sa.Text(), comment="whose data it was about, as far as that was found out"),
        sa.Column("correlation_id", sa.Text()),
        sa.Column("status", sa.Integer(), comment="of the answer; null: it goes on, or the process died meanwhile"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_called_at", "audit_log", ["called_at"])
    op.create_table(
        "idempotent_requests",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of method, path and body"),
        sa.Column("answer", sa.LargeBinary(), comment="AES-256-GCM envelope; null: not answered yet"),
        sa.Column("created_at", _TIMESTAMP, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("caller", "idempotency_key", name=op.f("pk_idempotent_requests")),
    )
    op.create_index("ix_idempotent_requests_created_at", "idempotent_requests", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotent_requests")
    op.drop_table("audit_log")
    op.drop_table("api_keys")
