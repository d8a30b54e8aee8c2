"""What a process holds in PostgreSQL that others take over when it stands still: its leases."""

from collections.abc import Mapping

import asyncpg

# The owner of a lease is host/process/number (`services/poller/leases.py`). Every claim raises the fence, no end does.
# language=sql
_LEASES = """
SELECT 'journal ' || user_token_id AS what, lease_owner, fence FROM active_sync_schedules
UNION ALL
SELECT 'task ' || task_id, lease_owner, fence FROM task_history
UNION ALL
SELECT 'device ' || task_id, lease_owner, fence FROM device_authorizations
"""

Fences = Mapping[str, int]
"""Rows with the number of their last claim."""


async def leases_of(database: asyncpg.Connection, pid: int) -> Fences:
    """The rows that a process has leased, also where the lease has run out and nobody else has come for it."""
    rows = await database.fetch(_LEASES)
    return {row["what"]: row["fence"] for row in rows if f"/{pid}/" in (row["lease_owner"] or "")}


async def taken_over(database: asyncpg.Connection, held: Fences) -> list[str]:
    """Those of the rows that somebody has claimed since."""
    rows = await database.fetch(_LEASES)
    return sorted(row["what"] for row in rows if row["fence"] > held.get(row["what"], row["fence"]))
