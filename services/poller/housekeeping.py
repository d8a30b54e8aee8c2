"""Removing what has aged (requirement B10): runs, tasks, events, ended authorisations, the audit log. Orders never."""

from datetime import timedelta

import asyncpg

from services.poller.settings import PollerSettings

_BATCH = 5000

# Small batches: short locks, and replicas that do the same at once share the work (SKIP LOCKED).
# language=sql
_STATEMENTS = {
    "sync_history": """
DELETE FROM sync_history WHERE run_id IN (
    SELECT run_id FROM sync_history WHERE started_at < now() - $1::interval AND completed_at IS NOT NULL
     LIMIT $2 FOR UPDATE SKIP LOCKED)
""",
    "task_history": """
DELETE FROM task_history WHERE task_id IN (
    SELECT task_id FROM task_history
     WHERE created_at < now() - $1::interval AND status NOT IN ('queued', 'running', 'stopping')
     LIMIT $2 FOR UPDATE SKIP LOCKED)
""",
    "missing_orders": """
DELETE FROM missing_orders WHERE (user_token_id, allegro_order_id) IN (
    SELECT user_token_id, allegro_order_id FROM missing_orders WHERE observed_at < now() - $1::interval
     LIMIT $2 FOR UPDATE SKIP LOCKED)
""",
    "device_authorizations": """
DELETE FROM device_authorizations WHERE task_id IN (
    SELECT task_id FROM device_authorizations WHERE finished_at < now() - $1::interval
     LIMIT $2 FOR UPDATE SKIP LOCKED)
""",
}

_AUDIT = """
DELETE FROM audit_log WHERE id IN (
    SELECT id FROM audit_log WHERE called_at < now() - $1::interval LIMIT $2 FOR UPDATE SKIP LOCKED)
"""

_ANSWERS = """
DELETE FROM idempotent_requests WHERE (caller, idempotency_key) IN (
    SELECT caller, idempotency_key FROM idempotent_requests WHERE created_at < now() - $1::interval
     LIMIT $2 FOR UPDATE SKIP LOCKED)
"""
# The API itself gives none again that is older than a day.
_ANSWERS_LIFE = timedelta(days=2)

_EVENTS = """
DELETE FROM order_events WHERE (user_token_id, event_id) IN (
    SELECT user_token_id, event_id FROM order_events WHERE stored_at < now() - $1::interval
     LIMIT $2 FOR UPDATE SKIP LOCKED)
"""


# Whoever adds an order moves the number in the same transaction, so with the row locked both are of one moment.
_UNCOUNTED = """
SELECT user_token_id FROM journal_cursors WHERE orders_stored IS NULL LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_COUNT = """
UPDATE journal_cursors SET orders_stored = (SELECT count(*) FROM orders WHERE user_token_id = $1)
 WHERE user_token_id = $1
"""


class Housekeeper:
    """Removes aged rows, a batch of each table a turn, and counts what nobody has counted."""

    def __init__(self, pool: asyncpg.Pool, settings: PollerSettings) -> None:
        self._pool = pool
        self._history = timedelta(days=settings.sync_history_retention_days)
        self._events = timedelta(days=settings.sync_events_retention_days)
        self._audit = timedelta(days=settings.poller_audit_retention_days)

    async def turn(self) -> bool:
        """Remove a batch; says whether there may be more."""
        removed = [await self._pool.execute(statement, self._history, _BATCH) for statement in _STATEMENTS.values()]
        for statement, age in ((_EVENTS, self._events), (_AUDIT, self._audit), (_ANSWERS, _ANSWERS_LIFE)):
            removed.append(await self._pool.execute(statement, age, _BATCH))
        return await self._count_orders() or any(command.endswith(f" {_BATCH}") for command in removed)

    async def _count_orders(self) -> bool:
        """Count the orders of a seller whose number is not known; says whether there was one."""
        async with self._pool.acquire() as connection, connection.transaction():
            token_id = await connection.fetchval(_UNCOUNTED)
            if token_id is not None:
                await connection.execute(_COUNT, token_id)
        return token_id is not None
