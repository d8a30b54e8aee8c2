"""The pool: a statement is one round trip, and what a transaction did not end is undone."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from shared.database import open_pool, wait_for_pool
from shared.errors import ConfigurationError

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=1)
    yield opened
    opened.terminate()


@pytest.mark.parametrize(
    ("part", "other", "said"),
    [
        ("?", "?sslmode=nonsense", "sslmode"),
        ("@", "-and-more@", "password authentication failed"),
        ("?", "-and-more?", "does not exist"),
    ],
)
async def test_an_address_that_is_wrong_is_named_and_not_waited_for(
    database_url: str, part: str, other: str, said: str
) -> None:
    wrong = f"{database_url}?".replace(part, other).rstrip("?")

    with pytest.raises(ConfigurationError, match=f"^DATABASE_URL: .*{said}"):
        await wait_for_pool(wrong, service="test", max_size=1)


async def test_giving_a_connection_back_asks_the_server_nothing(pool: asyncpg.Pool, database_url: str) -> None:
    backend = await pool.fetchval("SELECT pg_backend_pid()")
    await pool.fetchval("SELECT 'the last statement'")

    other = await asyncpg.connect(database_url)
    last = await other.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", backend)
    await other.close()

    assert last == "SELECT 'the last statement'"


async def test_what_a_transaction_left_open_is_rolled_back(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        await connection.execute("BEGIN")
        await connection.execute("SET LOCAL lock_timeout = '7s'")
        await connection.execute("SELECT pg_advisory_xact_lock(1)")

    assert await pool.fetchval("SHOW lock_timeout") == "0"
    assert (
        await pool.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == 0
    )
