"""Runs that stand still say so, and what they wait for (requirement B8): `stalled` until they come on again.

Nothing is given up here: what a run waits for stays owed and is tried again. A run whose seller was deactivated can
never come on; it fails and says why.
"""

import logging
from datetime import timedelta

import asyncpg

from services.poller import metrics
from services.poller.settings import PollerSettings
from shared.ended_runs import count_ended

logger = logging.getLogger(__name__)

# language=sql
_STALL = """
UPDATE sync_history r
   SET status = 'stalled', error = s.reason
  FROM (SELECT q.run_id,
               CASE WHEN t.status NOT IN ('active', 'refresh_failed')
                    THEN 'the token is ' || t.status || coalesce(': ' || t.status_reason, '')
                    WHEN p.orders > 0
                    THEN p.orders || ' orders are not fetched yet' || coalesce('; the last error: ' || p.last_error, '')
                    WHEN q.kind = 'journal' THEN 'events that were read are not stored'
                    ELSE 'no page of the list of orders came' END AS reason
          FROM sync_history q
          JOIN user_tokens t ON t.id = q.user_token_id
         CROSS JOIN LATERAL (SELECT count(*) AS orders,
                                    (array_agg(f.last_error ORDER BY f.next_attempt_at DESC))[1] AS last_error
                               FROM pending_fetches f
                              WHERE f.user_token_id = q.user_token_id AND q.run_id = ANY(f.run_ids)) p
         WHERE q.completed_at IS NULL AND q.status = 'running' AND q.progress_at < now() - $1::interval
         LIMIT $2) s
 WHERE r.run_id = s.run_id AND r.completed_at IS NULL AND r.progress_at < now() - $1::interval
RETURNING r.run_id, r.error
"""

# language=sql
_RESUME = """
UPDATE sync_history SET status = 'running', error = NULL
 WHERE completed_at IS NULL AND status = 'stalled' AND progress_at >= now() - $1::interval
"""

# language=sql
_FAIL = """
WITH failed AS (
    UPDATE sync_history r SET status = 'failed', completed_at = now(), error = 'the token was deactivated'
      FROM user_tokens t
     WHERE r.completed_at IS NULL AND t.id = r.user_token_id AND t.status = 'deactivated'
       AND NOT EXISTS (SELECT FROM task_history h
                        WHERE h.task_id = r.task_id AND h.stop_requested_at IS NOT NULL AND h.finished_at IS NULL)
    RETURNING r.run_id, r.task_id, r.kind, r.status
), windows AS (
    UPDATE run_windows w SET finished = true FROM failed WHERE w.run_id = failed.run_id
), tasks AS (
    UPDATE task_history h
       SET status = 'failed', finished_at = now(), error = 'the token was deactivated',
           lease_owner = NULL, lease_until = NULL
      FROM failed WHERE h.task_id = failed.task_id AND h.finished_at IS NULL
)
SELECT kind, status FROM failed
"""

_STALLED = "SELECT count(*) FROM sync_history WHERE completed_at IS NULL AND status = 'stalled'"

_BATCH = 1000


class Standstill:
    """Keeps the status of unfinished runs true."""

    def __init__(self, pool: asyncpg.Pool, settings: PollerSettings) -> None:
        self._pool = pool
        self._patience = timedelta(seconds=settings.poller_stalled_seconds)

    async def turn(self) -> bool:
        """Note what stands still, and what came on again; says whether there may be more."""
        count_ended(await self._pool.fetch(_FAIL))
        await self._pool.execute(_RESUME, self._patience)
        stalled = await self._pool.fetch(_STALL, self._patience, _BATCH)
        for run in stalled:
            logger.warning("a run stands still", extra={"run_id": str(run["run_id"]), "reason": run["error"]})
        metrics.stalled_runs.set(await self._pool.fetchval(_STALLED))
        return len(stalled) == _BATCH
