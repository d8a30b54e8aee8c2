"""Tokens are read at every call, many at a time, and never from a query that began before the call (A6, P7)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from shared.database import open_pool
from shared.token_lookups import Found, TokenLookups

pytestmark = pytest.mark.integration


class Counted:
    """A pool whose queries are counted, and held until they are let go."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.queries = 0
        self.free = asyncio.Event()
        self.free.set()

    async def fetch(self, query: str, *arguments: Any) -> Any:
        self.queries += 1
        rows = await self._pool.fetch(query, *arguments)
        await self.free.wait()
        return rows


def value_of(found: Found, column: str) -> Any:
    assert found.row is not None
    return found.row[column]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=4)
    await pool.executemany("INSERT INTO user_tokens (user_id) VALUES ($1)", [(f"shop-{n}",) for n in range(3)])
    yield pool
    await pool.close()


async def test_calls_during_a_query_share_the_next_one(pool: asyncpg.Pool) -> None:
    counted = Counted(pool)
    counted.free.clear()
    lookups = TokenLookups(counted)
    first = asyncio.create_task(lookups.find(1))
    await asyncio.sleep(0)
    others = [asyncio.create_task(lookups.find(1 + n % 3)) for n in range(30)]
    await asyncio.sleep(0)
    counted.free.set()

    found = await asyncio.gather(first, *others)

    assert [value_of(token, "id") for token in found] == [1, *(1 + n % 3 for n in range(30))]
    assert counted.queries == 2


async def test_a_call_never_gets_what_was_read_before_it(pool: asyncpg.Pool) -> None:
    counted = Counted(pool)
    counted.free.clear()
    lookups = TokenLookups(counted)
    early = asyncio.create_task(lookups.find(1))
    while not counted.queries:  # noqa: ASYNC110 - one turn of the loop
        await asyncio.sleep(0)
    await pool.execute("UPDATE user_tokens SET generation = 7 WHERE id = 1")
    late = asyncio.create_task(lookups.find(1))
    await asyncio.sleep(0)
    counted.free.set()

    await early
    assert value_of(await late, "generation") == 7


async def test_a_token_that_is_not_there_is_none(pool: asyncpg.Pool) -> None:
    assert (await TokenLookups(pool).find(99)).row is None


async def test_everyone_is_told_of_an_outage_and_the_next_call_asks_again(pool: asyncpg.Pool) -> None:
    class Away:
        async def fetch(self, *_: object) -> None:
            raise asyncpg.CannotConnectNowError("starting up")

    lookups = TokenLookups(Away())
    told = await asyncio.gather(*(lookups.find(1) for _ in range(3)), return_exceptions=True)

    assert [type(error) for error in told] == [asyncpg.CannotConnectNowError] * 3
    with pytest.raises(asyncpg.CannotConnectNowError):
        await lookups.find(1)


async def test_a_caller_that_gives_up_disturbs_nobody(pool: asyncpg.Pool) -> None:
    lookups = TokenLookups(pool)
    gone, stays = asyncio.create_task(lookups.find(1)), asyncio.create_task(lookups.find(1))
    await asyncio.sleep(0)
    gone.cancel()

    assert value_of(await stays, "id") == 1
