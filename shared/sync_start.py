"""What begins with a consent: schedule, journal cursor and initial load, in the transaction that stores the tokens."""

from datetime import timedelta
from uuid import uuid4

import asyncpg

from shared.logs import current_correlation_id
from shared.tracing import traceparent

# The lease is taken from whoever looks just now: a look with the pair before, refused, would pause the schedule again.
# language=sql
_SCHEDULE = """
INSERT INTO active_sync_schedules AS s (user_token_id, user_id, interval_seconds, next_full_run)
SELECT id, user_id, $2, now() + $3::interval FROM user_tokens WHERE id = $1
ON CONFLICT (user_token_id) DO UPDATE
   SET status = 'active', next_run = now(), last_error = NULL, consecutive_failures = 0,
       lease_owner = NULL, lease_until = NULL, fence = s.fence + 1
"""

# A cursor that exists stays: after a pause the journal is read on from there, without a gap.
_CURSOR = """
INSERT INTO journal_cursors (user_token_id, stored_event_id) VALUES ($1, 0) ON CONFLICT DO NOTHING
"""

# Everything once more after a new consent, too: what happened meanwhile may have left the journal. One listing at a
# time is enough.
_TASK = """
INSERT INTO task_history (task_id, user_token_id, user_id, kind, correlation_id, traceparent)
SELECT $2, t.id, t.user_id, 'initial', $3, $4
  FROM user_tokens t
 WHERE t.id = $1
   AND NOT EXISTS (SELECT FROM task_history h
                    WHERE h.user_token_id = t.id AND h.kind IN ('initial', 'full', 'reconcile')
                      AND h.status IN ('queued', 'running'))
"""


async def begin_sync(
    connection: asyncpg.Connection, token_id: int, *, interval: timedelta, full_interval: timedelta
) -> None:
    """Have a newly connected, or reconnected, seller loaded and kept current; in the caller's transaction."""
    await connection.execute(_SCHEDULE, token_id, int(interval.total_seconds()), full_interval)
    await connection.execute(_CURSOR, token_id)
    await connection.execute(_TASK, token_id, uuid4(), current_correlation_id(), traceparent())
    await connection.execute("SELECT pg_notify('orders_backup_tasks', '')")
