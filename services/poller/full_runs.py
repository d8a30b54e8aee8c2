"""The regular complete listing of every seller (requirement B4): what the journal never told comes to light."""

from datetime import timedelta
from uuid import uuid4

import asyncpg

from services.poller.settings import PollerSettings

_BATCH = 100
_JITTER_SHARE = 0.1

# The next time counts from now: listings that were missed are not made up for. One waiting or running is enough.
# language=sql
_CLAIM = """
WITH due AS (
    SELECT user_token_id FROM active_sync_schedules
     WHERE status = 'active' AND next_full_run <= now()
     ORDER BY next_full_run LIMIT $1 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE active_sync_schedules s
       SET next_full_run = now() + $2::interval * (1 + $3::float8 * random())
      FROM due WHERE s.user_token_id = due.user_token_id
    RETURNING s.user_token_id, s.user_id
)
SELECT user_token_id, user_id FROM moved m
 WHERE NOT EXISTS (SELECT FROM task_history h
                    WHERE h.user_token_id = m.user_token_id AND h.kind IN ('initial', 'full', 'reconcile')
                      AND h.status IN ('queued', 'running', 'stopping'))
"""

_QUEUE = """
INSERT INTO task_history (task_id, user_token_id, user_id, kind, requested_by)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[])
"""


class FullRuns:
    """Queues the complete listings that are due."""

    def __init__(self, pool: asyncpg.Pool, settings: PollerSettings) -> None:
        self._pool = pool
        self._interval = timedelta(seconds=settings.sync_full_interval_seconds)

    async def turn(self) -> bool:
        """Queue what is due; says whether there may be more."""
        async with self._pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(_CLAIM, _BATCH, self._interval, _JITTER_SHARE)
            await connection.execute(
                _QUEUE,
                [uuid4() for _ in rows],
                [row["user_token_id"] for row in rows],
                [row["user_id"] for row in rows],
                ["reconcile"] * len(rows),
                ["schedule"] * len(rows),
            )
        return len(rows) == _BATCH
