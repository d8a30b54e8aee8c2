"""What is owed, as numbers for Prometheus: how old the cursors are, what is still to be fetched, run or looked at.

Every replica tells the same, since it is read from PostgreSQL: panels and alerts take the maximum.
"""

from collections.abc import Iterable

import asyncpg
from prometheus_client import Gauge

from services.poller import metrics

# A cursor is as old as the moment up to which its journal is known to be stored: that of the last look that found
# nothing, or of the oldest publication that the cursor has not passed.
# language=sql
_CURSORS = """
WITH ages AS (
    SELECT extract(epoch FROM now() - CASE
               WHEN c.stored_event_id >= c.published_event_id THEN coalesce(s.last_success, s.created_at)
               ELSE least(coalesce(s.last_success, s.created_at), c.published_at) END)::float8 AS age
      FROM active_sync_schedules s
      JOIN journal_cursors c USING (user_token_id)
     WHERE s.status = 'active'
)
SELECT width_bucket(age, $1::float8[]) AS bucket, count(*) AS number FROM ages GROUP BY bucket
"""

# language=sql
_FETCHES = """
SELECT CASE WHEN attempts = 0 THEN 'first' ELSE 'retry' END AS state, count(*) AS number FROM pending_fetches GROUP BY 1
"""

# language=sql
_RUNS = "SELECT kind AS state, count(*) AS number FROM sync_history WHERE completed_at IS NULL GROUP BY 1"

# language=sql
_DEAD_LETTERS = "SELECT count(*) FROM dead_letters WHERE status = 'open'"

_AGES = {"1m": 60.0, "5m": 300.0, "15m": 900.0, "1h": 3600.0, "6h": 6 * 3600.0, "1d": 24 * 3600.0}
_OLDER = "older"
_STATES = ("first", "retry")
_KINDS = ("initial", "full", "manual", "journal", "orders", "reconcile")


def labelled(bucket: int) -> str:
    """The name of what PostgreSQL's `width_bucket` calls `bucket`: the age that is not yet reached."""
    return [*_AGES, _OLDER][bucket]


class Backlog:
    """Reads what is owed and tells Prometheus."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def turn(self) -> None:
        """Look once."""
        cursors = await self._pool.fetch(_CURSORS, list(_AGES.values()))
        _tell(metrics.cursors, [*_AGES, _OLDER], ((labelled(row["bucket"]), row["number"]) for row in cursors))
        for gauge, names, statement in (
            (metrics.pending_fetches, _STATES, _FETCHES),
            (metrics.unfinished_runs, _KINDS, _RUNS),
        ):
            _tell(gauge, names, ((row["state"], row["number"]) for row in await self._pool.fetch(statement)))
        metrics.open_dead_letters.set(await self._pool.fetchval(_DEAD_LETTERS))


def _tell(gauge: Gauge, names: Iterable[str], found: Iterable[tuple[str, int]]) -> None:
    """Set every label's number: one that is not found any more is 0."""
    for name, number in {**dict.fromkeys(names, 0), **dict(found)}.items():
        gauge.labels(name).set(number)
