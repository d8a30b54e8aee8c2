"""What a process holds that others take over when it stands still: leases in PostgreSQL, its place in a group."""

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient

# The owner of a lease is host/process/number (`services/poller/leases.py`).
# language=sql
_LEASES = """
SELECT 'journal ' || user_token_id FROM active_sync_schedules WHERE lease_owner LIKE '%/' || $1::text || '/%'
UNION ALL
SELECT 'task ' || task_id FROM task_history WHERE lease_owner LIKE '%/' || $1::text || '/%'
UNION ALL
SELECT 'device ' || task_id FROM device_authorizations WHERE lease_owner LIKE '%/' || $1::text || '/%'
"""


async def leases_of(database: asyncpg.Connection, pid: int) -> frozenset[str]:
    """The rows that a process has leased, also where the lease has run out and nobody else has come for it."""
    return frozenset(row[0] for row in await database.fetch(_LEASES, str(pid)))


async def members_of(bootstrap_servers: str, group: str) -> int:
    """How many members a consumer group has; raises KafkaError where there is no saying."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await admin.start()
        (answer,) = await admin.describe_consumer_groups([group])
    finally:
        await admin.close()
    _code, _name, _state, _type, _protocol, members = answer.groups[0][:6]
    return len(members)
