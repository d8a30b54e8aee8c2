"""Alembic's entry: runs the revisions on the connection that `migrations.run` hands over."""

from alembic import context
from sqlalchemy import Connection

from shared.schema import metadata

# A migration waits for a lock only briefly: a queue behind it would stop every service.
_LOCK_TIMEOUT = "5s"


def run(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
    )
    with context.begin_transaction():
        # One migrator at a time: replicas of a one-shot job may start together.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtextextended('orders-backup/migrations', 0))")
        context.run_migrations()


run(context.config.attributes["connection"])
