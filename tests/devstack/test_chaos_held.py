"""What a process holds, seen from outside: its leases in a real PostgreSQL, its place in a group of a real broker."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer

from devstack.chaos.held import leases_of, members_of, taken_over
from shared.topics import Topics
from tests.builders import a_token

pytestmark = pytest.mark.integration

_SECONDS = 60


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


async def test_a_group_has_as_many_members_as_have_joined_and_not_left(kafka_bootstrap: str, fresh_topics: str) -> None:
    topic, group = Topics(fresh_topics).orders, f"{fresh_topics}{uuid4().hex}"

    def a_member() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(topic, bootstrap_servers=kafka_bootstrap, group_id=group, session_timeout_ms=6000)

    async def until_there_are(count: int) -> None:
        async with asyncio.timeout(_SECONDS):
            while await members_of(kafka_bootstrap, group) != count:  # noqa: ASYNC110 - a broker tells nobody
                await asyncio.sleep(0.1)

    async with a_member():
        second = a_member()
        await second.start()
        await until_there_are(2)
        await second.stop()
        await until_there_are(1)
