"""What the checks of `make chaos` say when something went wrong: a check that never finds anything is none."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from devstack.chaos import verdict
from devstack.chaos.injector import Injected
from devstack.chaos.plan import Injection, Kind
from devstack.chaos.watch import violations, watch_rows
from shared.database import open_pool
from tests.builders import AN_ORDER, a_run, a_token

_INTEGRATION = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=2)
    yield opened
    await opened.close()


@pytest.fixture
async def database(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    async with pool.acquire() as connection:
        await watch_rows(connection)
        yield connection


@_INTEGRATION
async def test_a_token_that_went_back_or_died_is_noted(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool)
    await database.execute("UPDATE user_tokens SET generation = generation + 1")
    assert await violations(database) == []

    await database.execute("UPDATE user_tokens SET generation = generation - 1")
    await database.execute("UPDATE user_tokens SET status = 'refresh_failed'")

    assert [found.split(" ", 1)[1] for found in await violations(database)] == [
        f"token {token} went back to an older pair"
    ]
    assert len((await verdict.wrong_rows(database))["tokens"]) == 1


@_INTEGRATION
async def test_a_counter_that_went_back_and_a_run_that_does_not_end_are_found(
    pool: asyncpg.Pool, database: asyncpg.Connection
) -> None:
    await a_token(pool)
    await a_run(pool)
    await database.execute("UPDATE sync_history SET events_stored = 5")
    assert await violations(database) == []
    assert len((await verdict.wrong_rows(database))["counters"]) == 1

    await database.execute("UPDATE sync_history SET events_stored = 4")

    assert len(await violations(database)) == 1
    assert any("has not ended" in complaint for complaint in await verdict.stuck(database))


@_INTEGRATION
async def test_an_order_that_is_still_wanted_is_stuck(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool)
    assert await verdict.stuck(database) == []

    await database.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
        " VALUES ($1, $2, now(), now())",
        token,
        AN_ORDER,
    )

    assert await verdict.stuck(database) == [f"order {AN_ORDER} is still to be fetched"]


def test_too_much_memory_and_too_slow_a_recovery_are_complaints() -> None:
    fault = Injected(Injection(0.0, Kind.KILL, "writer"), began=0.0, recovery_seconds=601.0)

    assert verdict.too_much_memory({"writer": verdict.MOST_MEMORY_MB}) == []
    assert len(verdict.too_much_memory({"writer": verdict.MOST_MEMORY_MB + 1})) == 1
    assert len(verdict.too_slow([fault])) == 1
