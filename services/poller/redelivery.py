"""What got stuck is sent out again: bulk loads without progress, looks that are owed and due, ends of runs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta

import asyncpg

from services.poller import metrics
from services.poller.publish import Publisher
from services.poller.settings import PollerSettings
from shared.ended_runs import count_ended
from shared.errors import TransientError
from shared.logs import correlated
from shared.messages import OrderFetch, OrderWindow
from shared.tracing import span

_BATCH = 1000
# Allegro answers a seller's thousand a minute.
_PARKED_AT_ONCE = 50
_PARKED_PACE = timedelta(seconds=3)
# Of the patience with a bulk load that does not move: 32 minutes by default.
_MAX_PATIENCE_FACTOR = 16

# What a walk has found may wait for a busy writer: walking again makes its backlog longer. So each time without
# progress waits twice as long as the time before. `published_at` is when it was sent out or taken up last.
# language=sql
_STUCK_WINDOWS = """
WITH stuck AS (
    SELECT w.run_id FROM run_windows w
      JOIN sync_history r USING (run_id) JOIN user_tokens t ON t.id = w.user_token_id
     WHERE NOT w.finished AND r.completed_at IS NULL AND w.progress_at < now() - $1::interval
       AND w.published_at < now() - greatest($1, least(w.published_at - w.progress_at, $1 * $3::float8))
       AND t.status IN ('active', 'refresh_failed')
     ORDER BY w.progress_at LIMIT $2 FOR UPDATE OF w SKIP LOCKED
)
UPDATE run_windows w SET published_at = now() FROM stuck WHERE w.run_id = stuck.run_id
RETURNING w.run_id, w.user_token_id, w.bought_from, w.bought_to,
          (SELECT ARRAY[h.correlation_id, h.traceparent]
             FROM sync_history r JOIN task_history h USING (task_id) WHERE r.run_id = w.run_id) AS request
"""

# Twice the time that it has waited so far, six hours at most: an outage does not make the topic grow.
# What was tried and failed is owed to a seller who may have thousands of it, due at once when all is well again: so
# much at a time as Allegro answers, since an enricher that has no room for more would leave it until the next time.
_DUE_FETCHES = """
WITH due AS (
    SELECT p.user_token_id, p.allegro_order_id, p.attempts, p.next_attempt_at
      FROM pending_fetches p JOIN user_tokens t ON t.id = p.user_token_id
     WHERE p.next_attempt_at <= now() AND t.status IN ('active', 'refresh_failed')
     ORDER BY p.next_attempt_at LIMIT $1 FOR UPDATE OF p SKIP LOCKED
), placed AS (
    SELECT user_token_id, allegro_order_id,
           CASE WHEN attempts = 0 THEN 0 ELSE (row_number() OVER parked - 1) / $2::int END AS round
      FROM due
    WINDOW parked AS (PARTITION BY user_token_id, attempts > 0 ORDER BY next_attempt_at)
)
UPDATE pending_fetches p
   SET next_attempt_at = now() + CASE WHEN d.round > 0 THEN d.round * $3::interval
           ELSE least(interval '6 hours', greatest(interval '2 minutes', now() - p.created_at))
                * (0.9 + random() * 0.2) END
  FROM placed d WHERE p.user_token_id = d.user_token_id AND p.allegro_order_id = d.allegro_order_id
RETURNING p.user_token_id, p.allegro_order_id, p.wanted_after, p.bought_at, p.attempts, clock_timestamp() AS asked_at,
          d.round = 0 AS is_sent,
          CASE WHEN cardinality(p.run_ids) = 1 THEN p.run_ids[1] END AS run_id,
          (SELECT ARRAY[h.correlation_id, h.traceparent] FROM sync_history r JOIN task_history h USING (task_id)
            WHERE r.run_id = ANY(p.run_ids) AND h.correlation_id IS NOT NULL LIMIT 1) AS request
"""


# They never left: Kafka is away, or its topics are. Rows are locked in the order in which the writer locks them.
# language=sql
_STILL_DUE = """
WITH kept AS (
    SELECT p.user_token_id, p.allegro_order_id FROM pending_fetches p
      JOIN unnest($1::bigint[], $2::text[]) AS f (user_token_id, order_id)
           ON p.user_token_id = f.user_token_id AND p.allegro_order_id = f.order_id
     ORDER BY p.user_token_id, p.allegro_order_id FOR UPDATE OF p
)
UPDATE pending_fetches p SET next_attempt_at = now()
  FROM kept WHERE p.user_token_id = kept.user_token_id AND p.allegro_order_id = kept.allegro_order_id
"""

# The writer ends these runs as it stores what they wait for. Two writers that overlap while partitions move, or a
# re-reading that found nothing new, may leave one for us.
# language=sql
_END_SETTLED = """
WITH ended AS (
    UPDATE sync_history r
       SET status = CASE WHEN r.orders_unseen = 0 THEN 'completed' ELSE 'stalled' END,
           error = CASE WHEN r.orders_unseen > 0 THEN r.orders_unseen || ' orders could not be looked at' END,
           completed_at = now()
      FROM journal_cursors c
     WHERE r.completed_at IS NULL AND r.kind IN ('journal', 'orders') AND r.started_at < now() - interval '1 minute'
       AND c.user_token_id = r.user_token_id AND (r.last_event_id IS NULL OR c.stored_event_id >= r.last_event_id)
       AND NOT EXISTS (SELECT FROM pending_fetches p
                        WHERE p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids))
    RETURNING r.task_id, r.kind, r.status, r.error
), tasks AS (
    UPDATE task_history t
       SET status = ended.status, finished_at = now(), error = ended.error, lease_owner = NULL, lease_until = NULL
      FROM ended WHERE t.task_id = ended.task_id
)
SELECT kind, status FROM ended
"""

# language=sql
_END_WALKED = """
WITH ended AS (
    UPDATE sync_history r
       SET (status, error) = (SELECT CASE WHEN n = 0 THEN 'completed' ELSE 'stalled' END,
                                     CASE WHEN n > 0 THEN n || ' orders could not be looked at' END
                                FROM (SELECT count(*) + r.orders_unseen AS n FROM pending_fetches p
                                       WHERE p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids)) missed),
           completed_at = now()
      FROM run_windows w
     WHERE r.completed_at IS NULL AND r.started_at < now() - interval '1 minute' AND w.run_id = r.run_id AND w.finished
       AND NOT EXISTS (SELECT FROM pending_fetches p
                        WHERE p.user_token_id = r.user_token_id AND r.run_id = ANY(p.run_ids) AND p.attempts = 0)
    RETURNING r.task_id, r.kind, r.status, r.error
), tasks AS (
    UPDATE task_history t
       SET status = ended.status, finished_at = now(), error = ended.error, lease_owner = NULL, lease_until = NULL
      FROM ended WHERE t.task_id = ended.task_id
)
SELECT kind, status FROM ended
"""


# A stopped walk's orders that were on their way have been stored and counted by now.
# language=sql
_CLOSE_WINDOWS = """
UPDATE run_windows w SET finished = true FROM sync_history r
 WHERE NOT w.finished AND r.run_id = w.run_id AND r.completed_at < now() - interval '10 minutes'
"""


class Redelivery:
    """Sends out again what the database knows is owed."""

    def __init__(self, pool: asyncpg.Pool, publisher: Publisher, settings: PollerSettings) -> None:
        self._pool = pool
        self._publisher = publisher
        self._patience = timedelta(seconds=settings.poller_window_redelivery_seconds)

    async def turn(self) -> bool:
        """Send out what is due; says whether there may be more."""
        windows = await self._windows()
        fetches = await self._fetches()
        return _BATCH in (windows, fetches)

    async def end_settled_runs(self) -> None:
        """End the runs that nothing is owed to any more."""
        for statement in (_END_SETTLED, _END_WALKED):
            count_ended(await self._pool.fetch(statement))
        await self._pool.execute(_CLOSE_WINDOWS)

    async def _windows(self) -> int:
        rows = await self._pool.fetch(_STUCK_WINDOWS, self._patience, _BATCH, _MAX_PATIENCE_FACTOR)
        for (identifier, parent), together in _by_request(rows).items():
            with correlated(identifier), span("send windows", parent=parent):
                await self._publisher.windows([_window(row) for row in together])
        metrics.redeliveries.labels("window").inc(len(rows))
        return len(rows)

    async def _fetches(self) -> int:
        due = await self._pool.fetch(_DUE_FETCHES, _BATCH, _PARKED_AT_ONCE, _PARKED_PACE)
        rows = [row for row in due if row["is_sent"]]
        try:
            for (identifier, parent), together in _by_request(rows).items():
                with correlated(identifier), span("send fetches", parent=parent):
                    await self._publisher.events([_fetch(row) for row in together])
        except TransientError:
            places = [row["user_token_id"] for row in rows], [row["allegro_order_id"] for row in rows]
            await self._pool.execute(_STILL_DUE, *places)
            raise
        metrics.redeliveries.labels("fetch").inc(len(rows))
        return len(due)


def _by_request(rows: Sequence[asyncpg.Record]) -> Mapping[tuple[str | None, str | None], Sequence[asyncpg.Record]]:
    """The rows by correlation id and traceparent of the request that they go back to, if they go back to one."""
    together: defaultdict[tuple[str | None, str | None], list[asyncpg.Record]] = defaultdict(list)
    for row in rows:
        identifier, parent = row["request"] or (None, None)
        together[identifier, parent].append(row)
    return together


def _window(row: asyncpg.Record) -> OrderWindow:
    return OrderWindow(
        token_id=row["user_token_id"],
        run_id=row["run_id"],
        bought_from=row["bought_from"],
        bought_to=row["bought_to"],
    )


def _fetch(row: asyncpg.Record) -> OrderFetch:
    return OrderFetch(
        token_id=row["user_token_id"],
        order_id=row["allegro_order_id"],
        wanted_after=row["wanted_after"],
        bought_at=row["bought_at"],
        attempts=row["attempts"],
        asked_at=row["asked_at"],
        run_id=row["run_id"],
    )
