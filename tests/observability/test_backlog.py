"""What is owed, as numbers: read from PostgreSQL, and 0 again when nothing is."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from msgspec.structs import replace
from prometheus_client import REGISTRY

from services.poller.backlog import Backlog
from services.writer.batch import collect
from services.writer.store import Store, Written
from shared.database import open_pool, tell_pool
from shared.messages import Record
from tests.builders import AN_ORDER, a_run, a_token, after, an_event, an_observation, consumed

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=4)
    yield pool
    await pool.close()


def told(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


async def a_schedule(pool: asyncpg.Pool, token_id: int, *, success: str, published: int = 0, ago: str = "0") -> None:
    """A schedule whose last look was `success` ago, and whose oldest publication on its way went out `ago`."""
    await pool.execute(
        "INSERT INTO active_sync_schedules (user_token_id, user_id, interval_seconds, next_full_run, last_success)"
        " VALUES ($1, 'shop', 180, now(), now() - $2::text::interval)",
        token_id,
        success,
    )
    await pool.execute(
        "UPDATE journal_cursors SET published_event_id = $2, published_at = now() - $3::text::interval"
        " WHERE user_token_id = $1",
        token_id,
        published,
        ago,
    )


async def store(pool: asyncpg.Pool, *records: Record) -> Written:
    return await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead-letters"))


async def test_cursors_are_told_by_the_moment_up_to_which_the_journal_is_stored(pool: asyncpg.Pool) -> None:
    quiet, late, waiting = [await a_token(pool, user_id=name, cursor=5) for name in ("quiet", "late", "waiting")]
    await a_schedule(pool, quiet, success="20 s")
    await a_schedule(pool, late, success="2 days")
    # Its looks succeed, but what they published half an hour ago is not stored.
    await a_schedule(pool, waiting, success="20 s", published=9, ago="30 minutes")

    await Backlog(pool).turn()

    ages = {age: told("orders_backup_cursors", age=age) for age in ("1m", "5m", "15m", "1h", "6h", "1d", "older")}
    assert ages == {"1m": 1, "5m": 0, "15m": 0, "1h": 1, "6h": 0, "1d": 0, "older": 1}


async def test_what_is_owed_is_told_and_gone_when_it_is_done(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_run(pool)
    await store(pool, an_event())
    await Backlog(pool).turn()
    owed = told("orders_backup_pending_fetches", state="first"), told("orders_backup_unfinished_runs", kind="full")

    await store(pool, an_observation(observed_at=after(60)))
    await pool.execute("UPDATE sync_history SET completed_at = now(), status = 'completed'")
    await Backlog(pool).turn()

    assert owed == (1, 1)
    assert told("orders_backup_pending_fetches", state="first") == 0
    assert told("orders_backup_unfinished_runs", kind="full") == 0


async def test_an_open_dead_letter_is_told_until_somebody_has_dealt_with_it(pool: asyncpg.Pool) -> None:
    await Store(pool).apply(collect([consumed(b"no json")], dead_letter_topic="dead-letters"))
    await Backlog(pool).turn()
    waiting = told("orders_backup_dead_letters_open")

    await pool.execute("UPDATE dead_letters SET status = 'dropped', resolved_at = now()")
    await Backlog(pool).turn()

    assert (waiting, told("orders_backup_dead_letters_open")) == (1, 0)


async def test_freshness_counts_from_the_event_to_the_look_that_shows_it(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    now = await pool.fetchval("SELECT now()")
    event = replace(an_event(wanted_after=now), wanted_after=now)
    await store(pool, event)

    early = await store(pool, an_observation(observed_at=after(-60)))
    shown = await store(pool, an_observation(observed_at=now))
    again = await store(pool, an_observation(order_id=AN_ORDER, observed_at=now))

    assert (early.waited_seconds, again.waited_seconds) == ((), ())
    (waited,) = shown.waited_seconds
    assert 0 <= waited < 60


async def test_the_use_of_the_pool_is_read_when_prometheus_asks(pool: asyncpg.Pool) -> None:
    tell_pool(pool)
    name = "orders_backup_database_pool_connections"

    async with pool.acquire(), pool.acquire():
        used, limit = told(name, state="used"), told(name, state="limit")

    assert (used, limit, told(name, state="used")) == (2, 4, 0)
