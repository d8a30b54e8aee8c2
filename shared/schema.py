"""The database schema, declared once: Alembic compares migrations with it, the API builds queries from it.

Vocabulary: a *token* is one connected seller of one user. A *task* is something a person or a schedule asked
for; a *run* (`sync_history`) is its execution. A *pending fetch* is an order that we know we have not looked at
since something happened to it: it is written in the transaction that stores the event, so losing Kafka loses
nothing (`docs/architecture.md`, "PostgreSQL is the only memory").
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_TIMESTAMP = DateTime(timezone=True)
# Allegro's ids are compared for equality and order of bytes only; "C" is the cheapest collation that does so.
_ID = Text(collation="C")


def _created_at() -> Column[object]:
    return Column("created_at", _TIMESTAMP, nullable=False, server_default=func.now())


def _lease() -> list[Column[object]]:
    """Columns of a row lease: who works on the row, until when, and a number that fences off late workers."""
    return [
        Column("lease_owner", Text),
        Column("lease_until", _TIMESTAMP),
        Column("fence", BigInteger, nullable=False, server_default=text("0")),
    ]


user_tokens = Table(
    "user_tokens",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", Text, nullable=False, comment="the integrator's own name for the seller"),
    Column("seller_id", Text, comment="Allegro's user id: claim user_name of the access token"),
    Column("seller_login", Text),
    Column("access_token", LargeBinary, comment="AES-256-GCM envelope; shared.encryption"),
    Column("refresh_token", LargeBinary, comment="AES-256-GCM envelope; shared.encryption"),
    Column("key_id", Text, comment="encryption key of both envelopes"),
    Column("scopes", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    Column("expires_at", _TIMESTAMP, comment="end of the access token"),
    Column("status", Text, nullable=False, server_default=text("'active'")),
    Column("status_reason", Text),
    Column(
        "generation",
        BigInteger,
        nullable=False,
        server_default=text("1"),
        comment="rises with every new pair",
    ),
    Column("refreshed_at", _TIMESTAMP),
    Column("refresh_after", _TIMESTAMP, comment="when the pair is next refreshed without being asked"),
    Column("refresh_failures", Integer, nullable=False, server_default=text("0")),
    Column("grant_rejected_at", _TIMESTAMP, comment="first invalid_grant of the present series"),
    Column("validated_at", _TIMESTAMP),
    Column("login_after", _TIMESTAMP, comment="when Allegro is next asked for the login; null: known"),
    _created_at(),
    Column("updated_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    UniqueConstraint("user_id"),
    CheckConstraint("status IN ('active', 'refresh_failed', 'reauthorization_required', 'deactivated')", name="status"),
    Index(
        "ix_user_tokens_refresh_after",
        "refresh_after",
        postgresql_where=text("status IN ('active', 'refresh_failed')"),
    ),
    Index("ix_user_tokens_login_after", "login_after", postgresql_where=text("login_after IS NOT NULL")),
)

device_authorizations = Table(
    "device_authorizations",
    metadata,
    Column("task_id", UUID(as_uuid=True), primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("device_code", LargeBinary, comment="encrypted; emptied when the authorisation ends"),
    Column("device_code_digest", LargeBinary, nullable=False, comment="SHA-256, to find the row by its code"),
    Column("key_id", Text),
    Column("user_code", Text, nullable=False),
    Column("verification_uri", Text, nullable=False),
    Column("verification_uri_complete", Text, nullable=False),
    Column("interval_seconds", Integer, nullable=False),
    Column("expires_at", _TIMESTAMP, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'PENDING'")),
    Column("reason", Text, comment="machine-readable end: denied, expired, code_used, superseded, ..."),
    Column("message", Text, comment="the same for a person"),
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id")),
    Column("next_poll_at", _TIMESTAMP, nullable=False),
    Column("polls", Integer, nullable=False, server_default=text("0")),
    Column("correlation_id", Text),
    Column("traceparent", Text, comment="the span of the request, if it was traced (W3C Trace Context)"),
    *_lease(),
    _created_at(),
    Column("finished_at", _TIMESTAMP),
    UniqueConstraint("device_code_digest"),
    CheckConstraint("status IN ('PENDING', 'SUCCESS', 'FAILURE')", name="status"),
    Index("ix_device_authorizations_next_poll_at", "next_poll_at", postgresql_where=text("status = 'PENDING'")),
    Index("ix_device_authorizations_user_id", "user_id"),
)

active_sync_schedules = Table(
    "active_sync_schedules",
    metadata,
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), primary_key=True),
    Column("user_id", Text, nullable=False),
    Column("interval_seconds", Integer, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'active'")),
    Column("last_run", _TIMESTAMP),
    Column("last_success", _TIMESTAMP),
    Column("next_run", _TIMESTAMP, nullable=False, server_default=func.now()),
    Column("next_full_run", _TIMESTAMP, nullable=False, comment="next complete listing (reconciliation)"),
    Column("last_error", Text),
    Column("consecutive_failures", Integer, nullable=False, server_default=text("0")),
    *_lease(),
    _created_at(),
    CheckConstraint("status IN ('active', 'paused')", name="status"),
    CheckConstraint("interval_seconds > 0", name="interval"),
    Index(
        "ix_active_sync_schedules_well",
        "next_run",
        postgresql_where=text("status = 'active' AND consecutive_failures = 0"),
    ),
    Index(
        "ix_active_sync_schedules_failing",
        "next_run",
        postgresql_where=text("status = 'active' AND consecutive_failures > 0"),
    ),
    Index("ix_active_sync_schedules_next_full_run", "next_full_run", postgresql_where=text("status = 'active'")),
)

journal_cursors = Table(
    "journal_cursors",
    metadata,
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), primary_key=True),
    Column(
        "stored_event_id",
        BigInteger,
        nullable=False,
        comment="every event up to here is in order_events; moved by the writer only",
    ),
    Column("stored_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    Column(
        "covered_event_id",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="orders of events up to here come from the initial load and need no fetch of their own",
    ),
    Column("published_event_id", BigInteger, nullable=False, server_default=text("0")),
    Column("published_at", _TIMESTAMP),
    Column(
        "rewinds",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="re-reads since the cursor last moved",
    ),
    Column(
        "orders_stored",
        BigInteger,
        server_default=text("0"),
        comment="rows in orders, kept by the writer; null: to be counted (services.poller.housekeeping)",
    ),
)

orders = Table(
    "orders",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), nullable=False),
    Column("allegro_order_id", _ID, nullable=False),
    Column("status", Text, nullable=False),
    Column("fulfillment_status", Text),
    Column("buyer_id", Text),
    Column("buyer_login", Text),
    Column("buyer_email", Text),
    Column("total_amount", Numeric),
    Column("currency", Text),
    Column("bought_at", _TIMESTAMP, comment="newest line item, as Allegro's own filter counts it (#1109)"),
    Column("allegro_updated_at", _TIMESTAMP, comment="blind to the seller's changes (#4355): for display only"),
    Column("revision", Text),
    Column("order_data", JSONB, nullable=False, comment="JSON-equal to what Allegro sent"),
    Column(
        "order_raw",
        LargeBinary,
        comment="the exact bytes, only where jsonb cannot hold them (NUL in a string)",
    ),
    Column("observed_at", _TIMESTAMP, nullable=False, comment="when we looked: the order's version"),
    Column("observed_by", Text, nullable=False),
    Column("gone_at", _TIMESTAMP, comment="Allegro no longer has it since; the copy stays"),
    Column("gone_reason", Text),
    Column("successor_order_id", _ID, comment="the order it was merged into"),
    _created_at(),
    Column("updated_at", _TIMESTAMP, nullable=False, server_default=func.now(), comment="last change of our copy"),
    UniqueConstraint("user_token_id", "allegro_order_id"),
    CheckConstraint("observed_by IN ('detail', 'list')", name="observed_by"),
    # With what statistics add up, so that they need not read the orders themselves.
    Index(
        "ix_orders_by_purchase",
        *("user_token_id", "bought_at", "id"),
        postgresql_include=["status", "currency", "total_amount"],
    ),
    Index("ix_orders_user_token_id_updated_at", "user_token_id", "updated_at", "id"),
    Index("ix_orders_user_token_id_id", "user_token_id", "id"),
    Index("ix_orders_user_token_id_status_bought_at", "user_token_id", "status", "bought_at", "id"),
    Index(
        "ix_orders_user_token_id_fulfillment_status_bought_at",
        *("user_token_id", "fulfillment_status", "bought_at", "id"),
    ),
    Index("ix_orders_user_token_id_buyer_login_bought_at", "user_token_id", "buyer_login", "bought_at", "id"),
    Index(
        "ix_orders_user_token_id_successor_order_id",
        "user_token_id",
        "successor_order_id",
        postgresql_where=text("successor_order_id IS NOT NULL"),
    ),
    Index("ix_orders_gone", "user_token_id", "buyer_login", postgresql_where=text("gone_at IS NOT NULL")),
)

order_state_outbox = Table(
    "order_state_outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_token_id", BigInteger, nullable=False),
    Column("allegro_order_id", _ID, nullable=False),
    Column("noted_at", _TIMESTAMP, nullable=False, server_default=func.now()),
)

order_state_topic = Table(
    "order_state_topic",
    metadata,
    Column("is_only_row", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "generation",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="the topic's marker (a committed offset) says the same, or the topic is not the one we filled",
    ),
    Column(
        "republish_after",
        BigInteger,
        server_default=text("0"),
        comment="orders.id up to which every state was published again; null: all of them",
    ),
    Column(
        "passes_left",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="so often all is published again after this time: some of it may lie where nobody can read it",
    ),
    CheckConstraint("is_only_row", name="is_only_row"),
)

order_events = Table(
    "order_events",
    metadata,
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), primary_key=True),
    Column("event_id", BigInteger, primary_key=True, comment="microseconds of the journal write (#5232)"),
    Column("event_type", Text, nullable=False),
    Column("occurred_at", _TIMESTAMP),
    Column("allegro_order_id", _ID, comment="checkoutForm.id; the specification lets it be absent"),
    Column("revision", Text),
    Column("event_data", JSONB, nullable=False),
    Column("event_raw", LargeBinary, comment="the exact bytes, only where jsonb cannot hold them"),
    Column("stored_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    Index("ix_order_events_user_token_id_allegro_order_id", "user_token_id", "allegro_order_id"),
    Index("ix_order_events_stored_at", "stored_at"),
)

pending_fetches = Table(
    "pending_fetches",
    metadata,
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), primary_key=True),
    Column("allegro_order_id", _ID, primary_key=True),
    Column("wanted_after", _TIMESTAMP, nullable=False, comment="settled by an observation made at or after this"),
    Column("bought_at", _TIMESTAMP, comment="newest line item of the event: lets a list page find the order"),
    Column("run_ids", ARRAY(UUID(as_uuid=True)), nullable=False, server_default=text("'{}'")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("next_attempt_at", _TIMESTAMP, nullable=False),
    Column("last_error", Text),
    _created_at(),
    Index("ix_pending_fetches_next_attempt_at", "next_attempt_at"),
)

missing_orders = Table(
    "missing_orders",
    metadata,
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), primary_key=True),
    Column("allegro_order_id", _ID, primary_key=True),
    Column(
        "observed_at",
        _TIMESTAMP,
        nullable=False,
        comment="the last look that found nothing where we have no copy: an older look that comes later shows the past",
    ),
    Column("reason", Text, nullable=False),
    Index("ix_missing_orders_observed_at", "observed_at"),
)

task_history = Table(
    "task_history",
    metadata,
    Column("task_id", UUID(as_uuid=True), primary_key=True),
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), nullable=False),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("parameters", JSONB, nullable=False, server_default=text("'{}'")),
    Column("status", Text, nullable=False, server_default=text("'queued'")),
    Column("requested_by", Text),
    Column("correlation_id", Text),
    Column("traceparent", Text, comment="the span of the request, if it was traced (W3C Trace Context)"),
    _created_at(),
    Column("started_at", _TIMESTAMP),
    Column("finished_at", _TIMESTAMP),
    Column("stop_requested_at", _TIMESTAMP),
    Column("error", Text),
    *_lease(),
    CheckConstraint("kind IN ('initial', 'full', 'manual', 'journal', 'orders', 'reconcile')", name="kind"),
    CheckConstraint(
        "status IN ('queued', 'running', 'stopping', 'completed', 'stopped', 'stalled', 'failed')",
        name="status",
    ),
    Index("ix_task_history_user_token_id_created_at", "user_token_id", "created_at"),
    Index("ix_task_history_created_at", "created_at", "task_id"),
    Index(
        "ix_task_history_unfinished",
        "created_at",
        postgresql_where=text("status IN ('queued', 'running', 'stopping')"),
    ),
)

sync_history = Table(
    "sync_history",
    metadata,
    Column("run_id", UUID(as_uuid=True), primary_key=True),
    Column("task_id", UUID(as_uuid=True), ForeignKey("task_history.task_id", ondelete="SET NULL")),
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), nullable=False),
    Column("user_id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False, server_default=text("'running'")),
    Column("window_from", _TIMESTAMP),
    Column("window_to", _TIMESTAMP),
    Column("last_event_id", BigInteger, comment="journal runs: the last event this run read"),
    Column("started_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    Column("progress_at", _TIMESTAMP, nullable=False, server_default=func.now(), comment="last time it came on"),
    Column("completed_at", _TIMESTAMP, comment="null: it goes on, also while it is stalled"),
    Column("orders_expected", BigInteger, comment="what Allegro said there is, where it said so"),
    Column("orders_processed", BigInteger, nullable=False, server_default=text("0")),
    Column("orders_added", BigInteger, nullable=False, server_default=text("0")),
    Column("orders_updated", BigInteger, nullable=False, server_default=text("0")),
    Column("events_stored", BigInteger, nullable=False, server_default=text("0")),
    Column("requests", BigInteger, nullable=False, server_default=text("0")),
    Column(
        "orders_unseen",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="so many orders at least it was to look at and cannot: dead letters, or too many at a time",
    ),
    Column("error", Text),
    CheckConstraint("kind IN ('initial', 'full', 'manual', 'journal', 'orders', 'reconcile')", name="kind"),
    CheckConstraint("status IN ('running', 'completed', 'stopped', 'stalled', 'failed')", name="status"),
    Index("ix_sync_history_user_token_id_started_at", "user_token_id", "started_at"),
    Index("ix_sync_history_started_at", "started_at"),
    Index("ix_sync_history_task_id", "task_id"),
    Index("ix_sync_history_unfinished", "user_token_id", postgresql_where=text("completed_at IS NULL")),
)

run_windows = Table(
    "run_windows",
    metadata,
    Column("run_id", UUID(as_uuid=True), ForeignKey("sync_history.run_id", ondelete="CASCADE"), primary_key=True),
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), nullable=False),
    Column("bought_from", _TIMESTAMP, nullable=False),
    Column("bought_to", _TIMESTAMP, nullable=False),
    Column("position", _TIMESTAMP, nullable=False, comment="everything bought before this is committed"),
    Column(
        "requests",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="what the walk has told that it spent; the run has that of its looks besides",
    ),
    Column("boundary_order_ids", ARRAY(_ID), nullable=False, server_default=text("'{}'")),
    Column(
        "next_sequence",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="orders committed so far",
    ),
    Column("attempt", Integer, nullable=False, server_default=text("0"), comment="fences off an earlier walker"),
    Column("published_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    Column("progress_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    Column("finished", Boolean, nullable=False, server_default=text("false")),
    Index("ix_run_windows_unfinished", "progress_at", postgresql_where=text("NOT finished")),
)

reconciliation_findings = Table(
    "reconciliation_findings",
    metadata,
    Column("run_id", UUID(as_uuid=True), ForeignKey("sync_history.run_id", ondelete="CASCADE"), primary_key=True),
    Column("allegro_order_id", _ID, primary_key=True),
    Column("user_token_id", BigInteger, ForeignKey("user_tokens.id"), nullable=False),
    Column("finding", Text, nullable=False, comment="how our copy differed from what Allegro has"),
    Column(
        "cause",
        Text,
        nullable=False,
        comment="unannounced: the journal had not told; owed: it had, and the look was still to be made",
    ),
    Column("found_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    CheckConstraint("finding IN ('missing', 'stale', 'merged', 'gone')", name="finding"),
    CheckConstraint("cause IN ('unannounced', 'owed')", name="cause"),
    Index("ix_reconciliation_findings_user_token_id", "user_token_id", "allegro_order_id"),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_token_id", BigInteger, comment="where the record's key named a token"),
    Column("service", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column(
        "headers",
        JSONB,
        nullable=False,
        server_default=text("'[]'"),
        comment="pairs of name and base64 value",
    ),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the value: one row for one record"),
    Column("error_type", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("1")),
    Column("status", Text, nullable=False, server_default=text("'open'")),
    _created_at(),
    Column("resolved_at", _TIMESTAMP),
    UniqueConstraint("topic", "partition", "offset", "digest"),
    CheckConstraint("status IN ('open', 'replayed', 'dropped')", name="status"),
    Index("ix_dead_letters_status_id", "status", "id"),
)

allegro_outages = Table(
    "allegro_outages",
    metadata,
    Column("client_id", Text, primary_key=True),
    Column("since", _TIMESTAMP, nullable=False, comment="most calls of a service fail since"),
    Column("seen_at", _TIMESTAMP, nullable=False, comment="the service said so; an old row says nothing"),
)

client_budgets = Table(
    "client_budgets",
    metadata,
    Column("client_id", Text, primary_key=True),
    Column(
        "theoretical_arrival_at",
        _TIMESTAMP,
        nullable=False,
        server_default=func.now(),
        comment="GCRA: when the budget leased so far is paid off",
    ),
    Column("blocked_until", _TIMESTAMP, comment="set by a 429: nobody calls before this"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, comment="never used twice: audit rows name keys"),
    Column("public_id", Text, nullable=False, comment="the part of the key that finds this row"),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the key, which is stored nowhere"),
    Column("scope", Text, nullable=False),
    Column("user_ids", ARRAY(Text), comment="the only users whose data it opens; null: all"),
    Column("requests_per_minute", Integer, comment="null: as API_REQUESTS_PER_MINUTE says"),
    _created_at(),
    Column("expires_at", _TIMESTAMP),
    Column("revoked_at", _TIMESTAMP),
    Column("last_used_at", _TIMESTAMP, comment="to the minute"),
    UniqueConstraint("name"),
    UniqueConstraint("public_id"),
    CheckConstraint("scope IN ('read', 'control', 'admin')", name="scope"),
    CheckConstraint("requests_per_minute > 0", name="requests_per_minute"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("called_at", _TIMESTAMP, nullable=False, server_default=func.now()),
    Column("caller", Text, nullable=False, comment="name of the API key"),
    Column("method", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("parameters", JSONB, nullable=False, comment="of the path"),
    Column("user_id", Text, comment="whose data it was about, as far as that was found out"),
    Column("correlation_id", Text),
    Column("status", Integer, comment="of the answer; null: it goes on, or the process died meanwhile"),
    Index("ix_audit_log_called_at", "called_at"),
)

idempotent_requests = Table(
    "idempotent_requests",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("idempotency_key", Text, primary_key=True),
    Column("request_digest", LargeBinary, nullable=False, comment="SHA-256 of method, path and body"),
    Column("answer", LargeBinary, comment="AES-256-GCM envelope; null: not answered yet"),
    _created_at(),
    Index("ix_idempotent_requests_created_at", "created_at"),
)
