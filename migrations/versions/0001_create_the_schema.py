"""Create the schema

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "client_budgets",
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column(
            "theoretical_arrival_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="GCRA: when the budget leased so far is paid off",
        ),
        sa.Column(
            "blocked_until",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="set by a 429: nobody calls before this",
        ),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_client_budgets")),
    )
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_token_id", sa.BigInteger(), nullable=True, comment="where the record's key named a token"),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column(
            "headers",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'"),
            nullable=False,
            comment="pairs of name and base64 value",
        ),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the value: one row for one record"),
        sa.Column("error_type", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'open'"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('open', 'replayed', 'dropped')", name=op.f("ck_dead_letters_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint(
            "topic",
            "partition",
            "offset",
            "digest",
            name=op.f("uq_dead_letters_topic_partition_offset_digest"),
        ),
    )
    op.create_index("ix_dead_letters_status_id", "dead_letters", ["status", "id"], unique=False)
    op.create_table(
        "user_tokens",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False, comment="the integrator's own name for the seller"),
        sa.Column(
            "seller_id",
            sa.Text(),
            nullable=True,
            comment="Allegro's user id: claim user_name of the access token",
        ),
        sa.Column("seller_login", sa.Text(), nullable=True),
        sa.Column("access_token", sa.LargeBinary(), nullable=True, comment="AES-256-GCM envelope; shared.encryption"),
        sa.Column(
            "refresh_token",
            sa.LargeBinary(),
            nullable=True,
            comment="AES-256-GCM envelope; shared.encryption",
        ),
        sa.Column("key_id", sa.Text(), nullable=True, comment="encryption key of both envelopes"),
        sa.Column("scopes", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="end of the access token"),
        sa.Column("status", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=True),
        sa.Column(
            "generation",
            sa.BigInteger(),
            server_default=sa.text("1"),
            nullable=False,
            comment="rises with every new pair",
        ),
        sa.Column("refreshed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "refresh_after",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the pair is next refreshed without being asked",
        ),
        sa.Column("refresh_failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "grant_rejected_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="first invalid_grant of the present series",
        ),
        sa.Column("validated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'refresh_failed', 'reauthorization_required', 'deactivated')",
            name=op.f("ck_user_tokens_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_tokens")),
        sa.UniqueConstraint("user_id", name=op.f("uq_user_tokens_user_id")),
    )
    op.create_index(
        "ix_user_tokens_refresh_after",
        "user_tokens",
        ["refresh_after"],
        unique=False,
        postgresql_where=sa.text("status IN ('active', 'refresh_failed')"),
    )
    op.create_table(
        "active_sync_schedules",
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("interval_seconds", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        sa.Column("last_run", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_success", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_run", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "next_full_run",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="next complete listing (reconciliation)",
        ),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("consecutive_failures", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('active', 'paused')", name=op.f("ck_active_sync_schedules_status")),
        sa.CheckConstraint("interval_seconds > 0", name=op.f("ck_active_sync_schedules_interval")),
        sa.ForeignKeyConstraint(
            ["user_token_id"], ["user_tokens.id"], name=op.f("fk_active_sync_schedules_user_token_id")
        ),
        sa.PrimaryKeyConstraint("user_token_id", name=op.f("pk_active_sync_schedules")),
    )
    op.create_index(
        "ix_active_sync_schedules_next_full_run",
        "active_sync_schedules",
        ["next_full_run"],
        unique=False,
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_index(
        "ix_active_sync_schedules_next_run",
        "active_sync_schedules",
        ["next_run"],
        unique=False,
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_table(
        "device_authorizations",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column(
            "device_code",
            sa.LargeBinary(),
            nullable=True,
            comment="encrypted; emptied when the authorisation ends",
        ),
        sa.Column(
            "device_code_digest",
            sa.LargeBinary(),
            nullable=False,
            comment="SHA-256, to find the row by its code",
        ),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("user_code", sa.Text(), nullable=False),
        sa.Column("verification_uri", sa.Text(), nullable=False),
        sa.Column("verification_uri_complete", sa.Text(), nullable=False),
        sa.Column("interval_seconds", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'PENDING'"), nullable=False),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=True,
            comment="machine-readable end: denied, expired, code_used, superseded, ...",
        ),
        sa.Column("message", sa.Text(), nullable=True, comment="the same for a person"),
        sa.Column("user_token_id", sa.BigInteger(), nullable=True),
        sa.Column("next_poll_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("polls", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('PENDING', 'SUCCESS', 'FAILURE')", name=op.f("ck_device_authorizations_status")),
        sa.ForeignKeyConstraint(
            ["user_token_id"], ["user_tokens.id"], name=op.f("fk_device_authorizations_user_token_id")
        ),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_device_authorizations")),
        sa.UniqueConstraint("device_code_digest", name=op.f("uq_device_authorizations_device_code_digest")),
    )
    op.create_index(
        "ix_device_authorizations_next_poll_at",
        "device_authorizations",
        ["next_poll_at"],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.create_index("ix_device_authorizations_user_id", "device_authorizations", ["user_id"], unique=False)
    op.create_table(
        "journal_cursors",
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "stored_event_id",
            sa.BigInteger(),
            nullable=False,
            comment="every event up to here is in order_events; moved by the writer only",
        ),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "covered_event_id",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="orders of events up to here come from the initial load and need no fetch of their own",
        ),
        sa.Column("published_event_id", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "rewinds",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="re-reads since the cursor last moved",
        ),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_journal_cursors_user_token_id")),
        sa.PrimaryKeyConstraint("user_token_id", name=op.f("pk_journal_cursors")),
    )
    op.create_table(
        "order_events",
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.BigInteger(), nullable=False, comment="microseconds of the journal write (#5232)"),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "allegro_order_id",
            sa.Text(collation="C"),
            nullable=True,
            comment="checkoutForm.id; the specification lets it be absent",
        ),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("event_data", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "event_raw",
            sa.LargeBinary(),
            nullable=True,
            comment="the exact bytes, only where jsonb cannot hold them",
        ),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_order_events_user_token_id")),
        sa.PrimaryKeyConstraint("user_token_id", "event_id", name=op.f("pk_order_events")),
    )
    op.create_index("ix_order_events_stored_at", "order_events", ["stored_at"], unique=False)
    op.create_index(
        "ix_order_events_user_token_id_allegro_order_id",
        "order_events",
        ["user_token_id", "allegro_order_id"],
        unique=False,
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("allegro_order_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("fulfillment_status", sa.Text(), nullable=True),
        sa.Column("buyer_id", sa.Text(), nullable=True),
        sa.Column("buyer_login", sa.Text(), nullable=True),
        sa.Column("buyer_email", sa.Text(), nullable=True),
        sa.Column("total_amount", sa.Numeric(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column(
            "bought_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="newest line item, as Allegro's own filter counts it (#1109)",
        ),
        sa.Column(
            "allegro_updated_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="blind to the seller's changes (#4355): for display only",
        ),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column(
            "order_data",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="JSON-equal to what Allegro sent",
        ),
        sa.Column(
            "order_raw",
            sa.LargeBinary(),
            nullable=True,
            comment="the exact bytes, only where jsonb cannot hold them (NUL in a string)",
        ),
        sa.Column(
            "observed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="when we looked: the order's version",
        ),
        sa.Column("observed_by", sa.Text(), nullable=False),
        sa.Column(
            "gone_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="Allegro no longer has it since; the copy stays",
        ),
        sa.Column("gone_reason", sa.Text(), nullable=True),
        sa.Column(
            "successor_order_id",
            sa.Text(collation="C"),
            nullable=True,
            comment="the order it was merged into",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="last change of our copy",
        ),
        sa.CheckConstraint("observed_by IN ('detail', 'list')", name=op.f("ck_orders_observed_by")),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_orders_user_token_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_orders")),
        sa.UniqueConstraint("user_token_id", "allegro_order_id", name=op.f("uq_orders_user_token_id_allegro_order_id")),
    )
    op.create_index("ix_orders_user_token_id_bought_at", "orders", ["user_token_id", "bought_at", "id"], unique=False)
    op.create_index("ix_orders_user_token_id_buyer_login", "orders", ["user_token_id", "buyer_login"], unique=False)
    op.create_index(
        "ix_orders_user_token_id_successor_order_id",
        "orders",
        ["user_token_id", "successor_order_id"],
        unique=False,
        postgresql_where=sa.text("successor_order_id IS NOT NULL"),
    )
    op.create_index("ix_orders_user_token_id_updated_at", "orders", ["user_token_id", "updated_at", "id"], unique=False)
    op.create_table(
        "pending_fetches",
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("allegro_order_id", sa.Text(collation="C"), nullable=False),
        sa.Column(
            "wanted_after",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="settled by an observation made at or after this",
        ),
        sa.Column(
            "bought_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="newest line item of the event: lets a list page find the order",
        ),
        sa.Column("run_ids", sa.ARRAY(sa.UUID()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_pending_fetches_user_token_id")),
        sa.PrimaryKeyConstraint("user_token_id", "allegro_order_id", name=op.f("pk_pending_fetches")),
    )
    op.create_index("ix_pending_fetches_next_attempt_at", "pending_fetches", ["next_attempt_at"], unique=False)
    op.create_table(
        "task_history",
        sa.Column("task_id", sa.UUID(), nullable=False),
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column(
            "parameters",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("status", sa.Text(), server_default=sa.text("'queued'"), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('initial', 'full', 'manual', 'journal', 'orders', 'reconcile')",
            name=op.f("ck_task_history_kind"),
        ),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'stopping', 'completed', 'stopped', 'stalled', 'failed')",
            name=op.f("ck_task_history_status"),
        ),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_task_history_user_token_id")),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_task_history")),
    )
    op.create_index(
        "ix_task_history_unfinished",
        "task_history",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running', 'stopping')"),
    )
    op.create_index(
        "ix_task_history_user_token_id_created_at",
        "task_history",
        ["user_token_id", "created_at"],
        unique=False,
    )
    op.create_table(
        "sync_history",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True),
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("window_from", sa.DateTime(timezone=True), nullable=True),
        sa.Column("window_to", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "last_event_id",
            sa.BigInteger(),
            nullable=True,
            comment="journal runs: the last event this run read",
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "orders_expected",
            sa.BigInteger(),
            nullable=True,
            comment="what Allegro said there is, where it said so",
        ),
        sa.Column("orders_processed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("orders_added", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("orders_updated", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("events_stored", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('initial', 'full', 'manual', 'journal', 'orders', 'reconcile')",
            name=op.f("ck_sync_history_kind"),
        ),
        sa.CheckConstraint(
            "status IN ('running', 'completed', 'stopped', 'stalled', 'failed')",
            name=op.f("ck_sync_history_status"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["task_history.task_id"], name=op.f("fk_sync_history_task_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_sync_history_user_token_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_sync_history")),
    )
    op.create_index(
        "ix_sync_history_running",
        "sync_history",
        ["user_token_id"],
        unique=False,
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_index("ix_sync_history_started_at", "sync_history", ["started_at"], unique=False)
    op.create_index(
        "ix_sync_history_user_token_id_started_at",
        "sync_history",
        ["user_token_id", "started_at"],
        unique=False,
    )
    op.create_table(
        "run_windows",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("user_token_id", sa.BigInteger(), nullable=False),
        sa.Column("bought_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("bought_to", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "position",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="everything bought before this is committed",
        ),
        sa.Column(
            "boundary_order_ids",
            sa.ARRAY(sa.Text(collation="C")),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "next_sequence",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="orders committed so far",
        ),
        sa.Column(
            "attempt",
            sa.Integer(),
            server_default=sa.text("0"),
            nullable=False,
            comment="fences off an earlier walker",
        ),
        sa.Column("published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("progress_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("finished", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["sync_history.run_id"], name=op.f("fk_run_windows_run_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["user_token_id"], ["user_tokens.id"], name=op.f("fk_run_windows_user_token_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run_windows")),
    )
    op.create_index(
        "ix_run_windows_unfinished",
        "run_windows",
        ["progress_at"],
        unique=False,
        postgresql_where=sa.text("NOT finished"),
    )


def downgrade() -> None:
    op.drop_index("ix_run_windows_unfinished", table_name="run_windows", postgresql_where=sa.text("NOT finished"))
    op.drop_table("run_windows")
    op.drop_index("ix_sync_history_user_token_id_started_at", table_name="sync_history")
    op.drop_index("ix_sync_history_started_at", table_name="sync_history")
    op.drop_index("ix_sync_history_running", table_name="sync_history", postgresql_where=sa.text("status = 'running'"))
    op.drop_table("sync_history")
    op.drop_index("ix_task_history_user_token_id_created_at", table_name="task_history")
    op.drop_index(
        "ix_task_history_unfinished",
        table_name="task_history",
        postgresql_where=sa.text("status IN ('queued', 'running', 'stopping')"),
    )
    op.drop_table("task_history")
    op.drop_index("ix_pending_fetches_next_attempt_at", table_name="pending_fetches")
    op.drop_table("pending_fetches")
    op.drop_index("ix_orders_user_token_id_updated_at", table_name="orders")
    op.drop_index(
        "ix_orders_user_token_id_successor_order_id",
        table_name="orders",
        postgresql_where=sa.text("successor_order_id IS NOT NULL"),
    )
    op.drop_index("ix_orders_user_token_id_buyer_login", table_name="orders")
    op.drop_index("ix_orders_user_token_id_bought_at", table_name="orders")
    op.drop_table("orders")
    op.drop_index("ix_order_events_user_token_id_allegro_order_id", table_name="order_events")
    op.drop_index("ix_order_events_stored_at", table_name="order_events")
    op.drop_table("order_events")
    op.drop_table("journal_cursors")
    op.drop_index("ix_device_authorizations_user_id", table_name="device_authorizations")
    op.drop_index(
        "ix_device_authorizations_next_poll_at",
        table_name="device_authorizations",
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.drop_table("device_authorizations")
    op.drop_index(
        "ix_active_sync_schedules_next_run",
        table_name="active_sync_schedules",
        postgresql_where=sa.text("status = 'active'"),
    )
    op.drop_index(
        "ix_active_sync_schedules_next_full_run",
        table_name="active_sync_schedules",
        postgresql_where=sa.text("status = 'active'"),
    )
    op.drop_table("active_sync_schedules")
    op.drop_index(
        "ix_user_tokens_refresh_after",
        table_name="user_tokens",
        postgresql_where=sa.text("status IN ('active', 'refresh_failed')"),
    )
    op.drop_table("user_tokens")
    op.drop_index("ix_dead_letters_status_id", table_name="dead_letters")
    op.drop_table("dead_letters")
    op.drop_table("client_budgets")
