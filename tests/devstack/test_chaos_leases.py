"""What a process has leased, seen from outside, in a real PostgreSQL."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.chaos.leases import leases_of, taken_over
from tests.builders import a_token

pytestmark = pytest.mark.integration


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def test_a_lease_is_its_owners_until_another_takes_it(database: asyncpg.Connection) -> None:
    token_id = await a_token(database)
    await database.execute(
        "INSERT INTO active_sync_schedules"
        " (user_token_id, user_id, interval_seconds, next_run, next_full_run, lease_owner, lease_until)"
        " SELECT id, user_id, 60, now(), now(), 'host/12/abc', now() - interval '1 hour' FROM user_tokens"
        " WHERE id = $1",
        token_id,
    )

    held, others = await leases_of(database, 12), await leases_of(database, 1)
    await database.execute("UPDATE active_sync_schedules SET lease_owner = NULL")
    ended = await taken_over(database, held)
    await database.execute("UPDATE active_sync_schedules SET lease_owner = 'host/112/abc', fence = fence + 1")

    assert (held, others) == ({f"journal {token_id}": 0}, {})
    assert ended == []
    assert await taken_over(database, held) == [f"journal {token_id}"]
    assert await leases_of(database, 12) == {}
