"""The checks at the end of a run: each returns what is wrong, in words; nothing wrong is an empty list."""

from collections.abc import Mapping
from typing import Any

import asyncpg

from devstack.chaos.injector import Injected

MOST_MEMORY_MB = 400.0
_RECOVERY_LIMIT_SECONDS = 600.0

# What happened until a fault was over, and was not yet stored then: when was the last of it stored?
# language=sql
_RECOVERY = """
SELECT coalesce(max(extract(epoch FROM stored_at)), $1::float8) - $1::float8 FROM order_events
 WHERE event_id <= ($1::float8 * 1000000)::bigint AND event_id > ($2::float8 * 1000000)::bigint
   AND stored_at > to_timestamp($1::float8)
"""

# language=sql
_LEASES = """
SELECT 'schedule of token ' || user_token_id AS what FROM active_sync_schedules
 WHERE status <> 'active' OR lease_until < now() - $1::interval OR next_run < now() - $1::interval
UNION ALL
SELECT format('task %s (%s) is %s', task_id, kind, status) FROM task_history
 WHERE status IN ('queued', 'running', 'stopping') OR lease_owner IS NOT NULL
UNION ALL
SELECT 'device authorisation ' || task_id FROM device_authorizations WHERE status = 'PENDING'
UNION ALL
SELECT format('run %s (%s) has not ended: %s', run_id, kind, status) FROM sync_history WHERE completed_at IS NULL
UNION ALL
SELECT format('order %s is still to be fetched', allegro_order_id) FROM pending_fetches
UNION ALL
SELECT format('window of run %s is not finished', w.run_id) FROM run_windows w JOIN sync_history USING (run_id)
 WHERE NOT finished AND status = 'completed'
"""

# Events are counted by the run whose transaction stored them; orders by the run that looked at them; nothing twice.
# language=sql
_COUNTERS = """
SELECT format('the runs stored %s events and the table has %s', counted, present)
  FROM (SELECT (SELECT sum(events_stored) FROM sync_history) AS counted, (SELECT count(*) FROM order_events) AS present)
 WHERE counted IS DISTINCT FROM present
UNION ALL
SELECT format('the runs added %s orders and the table has %s', counted, present)
  FROM (SELECT (SELECT sum(orders_added) FROM sync_history) AS counted, (SELECT count(*) FROM orders) AS present)
 WHERE counted > present
UNION ALL
SELECT format('the runs changed %s orders, which changed %s times', counted, present)
  FROM (SELECT (SELECT sum(orders_updated) FROM sync_history) AS counted,
               (SELECT count(*) FROM chaos.changes WHERE op = 'updated') AS present)
 WHERE counted > present
UNION ALL
SELECT format('run %s (%s) says %s orders processed and its walk %s', r.run_id, r.kind, r.orders_processed,
              w.next_sequence)
  FROM sync_history r JOIN run_windows w USING (run_id) WHERE r.orders_processed <> w.next_sequence
"""

_TOKENS = """
SELECT format('token %s is %s: %s', id, status, status_reason) FROM user_tokens WHERE status <> 'active'
"""

_DEAD_LETTERS = "SELECT format('dead letter of %s on %s: %s', service, topic, error) FROM dead_letters"

_OUTBOX = """
SELECT format('%s states wait to be published', count(*)) FROM order_state_outbox HAVING count(*) > 0
"""


async def stuck(connection: asyncpg.Connection) -> list[str]:
    """Leases, tasks, runs and looks that nobody ends."""
    return [row[0] for row in await connection.fetch(_LEASES.replace("$1::interval", "interval '60 seconds'"))]


async def wrong_rows(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """What the tables themselves tell, by check."""
    found = {}
    for name, question in (
        ("counters", _COUNTERS),
        ("tokens", _TOKENS),
        ("dead letters", _DEAD_LETTERS),
        ("outbox", _OUTBOX),
    ):
        found[name] = [row[0] for row in await connection.fetch(question)]
    return found


def too_much_memory(memory: Mapping[str, float]) -> list[str]:
    """Processes that ever had more memory than a small multiple of what they have when idle."""
    return [f"{name} had {used:.0f} MB" for name, used in memory.items() if used > MOST_MEMORY_MB]


async def note_recovery(connection: asyncpg.Connection, injected: Injected, since: float) -> None:
    """How long after the fault everything that had happened until its end was stored."""
    injected.recovery_seconds = await connection.fetchval(_RECOVERY, injected.ended, since)


def too_slow(done: list[Injected]) -> list[str]:
    """Faults after which it took too long."""
    return [
        f"{one.injection}: recovered after {one.recovery_seconds:.0f} s"
        for one in done
        if one.recovery_seconds > _RECOVERY_LIMIT_SECONDS
    ]


def wrong_listing(run: Mapping[str, Any], *, listed: int, added: int, updated: int) -> list[str]:
    """The counters of a listing that ran alone, against the ledger and what the database's triggers counted."""
    expected = {"orders_processed": listed, "orders_added": added, "orders_updated": updated}
    return [
        f"the last listing of {run['user_id']} says {name} {run[name]} instead of {right}"
        for name, right in expected.items()
        if run[name] != right
    ] + ([] if run["status"] == "completed" else [f"the last listing of {run['user_id']} is {run['status']}"])
