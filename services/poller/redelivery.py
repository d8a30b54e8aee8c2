"""What got stuck is sent out again: bulk loads without progress, and looks that are owed and due."""

from datetime import timedelta

import asyncpg

from services.poller.settings import PollerSettings
from shared.kafka import RecordProducer
from shared.logs import correlated, current_correlation_id
from shared.messages import OrderFetch, OrderWindow, headers

_BATCH = 1000

# language=sql
_STUCK_WINDOWS = """
WITH stuck AS (
    SELECT w.run_id FROM run_windows w
      JOIN sync_history r USING (run_id) JOIN user_tokens t ON t.id = w.user_token_id
     WHERE NOT w.finished AND r.status = 'running' AND greatest(w.progress_at, w.published_at) < now() - $1::interval
       AND t.status IN ('active', 'refresh_failed')
     ORDER BY w.progress_at LIMIT $2 FOR UPDATE OF w SKIP LOCKED
)
UPDATE run_windows w SET published_at = now() FROM stuck WHERE w.run_id = stuck.run_id
RETURNING w.run_id, w.user_token_id, w.bought_from, w.bought_to
"""

# Twice the time that it has waited so far, six hours at most: an outage does not make the topic grow.
_DUE_FETCHES = """
WITH due AS (
    SELECT p.user_token_id, p.allegro_order_id FROM pending_fetches p JOIN user_tokens t ON t.id = p.user_token_id
     WHERE p.next_attempt_at <= now() AND t.status IN ('active', 'refresh_failed')
     ORDER BY p.next_attempt_at LIMIT $1 FOR UPDATE OF p SKIP LOCKED
)
UPDATE pending_fetches p
   SET next_attempt_at = now() + least(interval '6 hours', greatest(interval '2 minutes', now() - p.created_at))
                                 * (0.9 + random() * 0.2)
  FROM due WHERE p.user_token_id = due.user_token_id AND p.allegro_order_id = due.allegro_order_id
RETURNING p.user_token_id, p.allegro_order_id, p.wanted_after, p.bought_at, p.attempts
"""


class Redelivery:
    """Sends out again what the database knows is owed."""

    def __init__(self, pool: asyncpg.Pool, producer: RecordProducer, settings: PollerSettings) -> None:
        self._pool = pool
        self._producer = producer
        self._topics = settings.topics
        self._patience = timedelta(seconds=settings.poller_window_redelivery_seconds)

    async def turn(self) -> bool:
        """Send out what is due; says whether there may be more."""
        with correlated(None):
            windows = await self._windows()
            fetches = await self._fetches()
        return _BATCH in (windows, fetches)

    async def _windows(self) -> int:
        rows = await self._pool.fetch(_STUCK_WINDOWS, self._patience, _BATCH)
        records = [
            OrderWindow(
                token_id=row["user_token_id"],
                run_id=row["run_id"],
                bought_from=row["bought_from"],
                bought_to=row["bought_to"],
            )
            for row in rows
        ]
        carried = headers(correlation_id=current_correlation_id())
        await self._producer.publish_all(
            self._topics.order_windows, [(record.key, record.encode(), carried) for record in records]
        )
        return len(records)

    async def _fetches(self) -> int:
        rows = await self._pool.fetch(_DUE_FETCHES, _BATCH)
        records = [
            OrderFetch(
                token_id=row["user_token_id"],
                order_id=row["allegro_order_id"],
                wanted_after=row["wanted_after"],
                bought_at=row["bought_at"],
                attempts=row["attempts"],
            )
            for row in rows
        ]
        carried = headers(correlation_id=current_correlation_id())
        await self._producer.publish_all(
            self._topics.order_events, [(record.key, record.encode(), carried) for record in records]
        )
        return len(records)
