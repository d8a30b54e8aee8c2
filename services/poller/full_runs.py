"""The regular complete listing of every seller (requirement B4): what the journal never told comes to light.

A first load that did not succeed is made again here, too, and sooner.
"""

from datetime import timedelta
from uuid import uuid4

import asyncpg

from services.poller.settings import PollerSettings

_BATCH = 100
_JITTER_SHARE = 0.1
_FIRST_LOAD_AGAIN = timedelta(minutes=5)

# Whether a listing has shown all that it was to show, even if some orders that it left out could not be looked at yet:
# those are owed, and fetched without another listing.
# language=sql
_WENT_THROUGH = """
(h.status = 'completed'
 OR EXISTS (SELECT FROM sync_history r JOIN run_windows w USING (run_id)
             WHERE r.task_id = h.task_id AND h.status = 'stalled' AND w.position = w.bought_to))
"""

# What a first load was to bring is fetched by nothing else: the journal's events of that time ask for no look. So one
# that failed or broke off is not left to the usual interval; each time without success waits twice as long.
# language=sql
_HASTEN = f"""
UPDATE active_sync_schedules s
   SET next_full_run = f.again_at
  FROM (SELECT user_token_id, max(created_at) AS created_at,
               max(finished_at) + least($1::interval, $2::interval * (2 ^ (count(*) - 1))::float8) AS again_at
          FROM task_history h
         WHERE created_at > now() - interval '2 days' AND kind = 'initial' AND status IN ('failed', 'stalled')
           AND NOT {_WENT_THROUGH}
         GROUP BY user_token_id) f
 WHERE s.user_token_id = f.user_token_id AND s.status = 'active' AND s.next_full_run > f.again_at
   AND NOT EXISTS (SELECT FROM task_history h
                    WHERE h.user_token_id = f.user_token_id AND h.kind IN ('initial', 'full', 'reconcile')
                      AND (h.status IN ('queued', 'running', 'stopping')
                           OR h.created_at > f.created_at AND {_WENT_THROUGH}))
"""  # noqa: S608 - a constant

# The next time counts from now: listings that were missed are not made up for. One waiting or running is enough.
# language=sql
_CLAIM = f"""
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
SELECT user_token_id, user_id,
       coalesce((SELECT h.kind = 'initial' AND NOT {_WENT_THROUGH} FROM task_history h
                  WHERE h.user_token_id = m.user_token_id AND h.kind IN ('initial', 'full', 'reconcile')
                  ORDER BY h.created_at DESC LIMIT 1), false) AS again
  FROM moved m
 WHERE NOT EXISTS (SELECT FROM task_history h
                    WHERE h.user_token_id = m.user_token_id AND h.kind IN ('initial', 'full', 'reconcile')
                      AND h.status IN ('queued', 'running', 'stopping'))
"""  # noqa: S608 - a constant

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
            await connection.execute(_HASTEN, self._interval, _FIRST_LOAD_AGAIN)
            rows = await connection.fetch(_CLAIM, _BATCH, self._interval, _JITTER_SHARE)
            await connection.execute(
                _QUEUE,
                [uuid4() for _ in rows],
                [row["user_token_id"] for row in rows],
                [row["user_id"] for row in rows],
                ["initial" if row["again"] else "reconcile" for row in rows],
                ["schedule"] * len(rows),
            )
        return len(rows) == _BATCH
