"""Allegro is away for a while: work pauses and goes on, nothing is set aside, no attempt is used up (E2)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, Seller, bench_stack, give_schedules
from shared.database import open_pool
from shared.sync_start import begin_sync
from tests.e2e.waiting import TEST_SECONDS, compared, until

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_SELLERS = 3
_ORDERS = 3000
_LIVE_ORDERS = 150
_OUTAGE_SECONDS = 25.0
_FEW_ORDERS = 10

_PARKED = "SELECT EXISTS (SELECT FROM pending_fetches WHERE user_token_id = $1 AND attempts > 0)"
_FAILED_JOURNAL = "SELECT consecutive_failures > 1 FROM active_sync_schedules WHERE user_token_id = $1"
_ARRIVED = "SELECT count(*) >= $2 FROM orders WHERE user_token_id = ANY($1::bigint[])"
# Orders of the broken seller that are stored; dead letters.
_KEPT = """
SELECT (SELECT count(*) FROM orders WHERE user_token_id = $1),
       (SELECT count(*) FROM dead_letters)
"""


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    options = ["--sellers", str(_SELLERS), "--orders", str(_ORDERS), "--latency-ms", "20", *NO_LIMITS]
    environment = {
        "KAFKA_SESSION_TIMEOUT_SECONDS": "6",
        "KAFKA_TOPIC_PARTITIONS": "3",
        "POLLER_STALLED_SECONDS": "5",
        "SYNC_LIST_LAG_SECONDS": "1",
    }
    with bench_stack(options, environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def begin(stack: BenchStack, pool: asyncpg.Pool) -> list[Seller]:
    sellers = await stack.connect_sellers(pool, _SELLERS)
    for seller in sellers:
        async with pool.acquire() as connection, connection.transaction():
            await begin_sync(
                connection, seller.token_id, interval=timedelta(seconds=2), full_interval=timedelta(days=10)
            )
    return sellers


async def test_an_outage_pauses_the_work_and_costs_nothing_else(stack: BenchStack, pool: asyncpg.Pool) -> None:
    sellers = await begin(stack, pool)
    async with stack.control() as control:
        with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
            await control.start_live(_LIVE_ORDERS, 10, step_seconds=1)
            await until(pool, "SELECT sum(orders_processed) > 500 FROM sync_history")

            await control.set_faults({"maintenance": {}})
            await until(pool, "SELECT EXISTS (SELECT FROM allegro_outages)")
            before = sum((await control.requests()).values())
            await asyncio.sleep(_OUTAGE_SECONDS)  # the length of the outage is what is tested
            spent = sum((await control.requests()).values()) - before
            during = {row["status"] for row in await pool.fetch("SELECT status FROM sync_history")}
            stalled = await pool.fetchval("SELECT count(*) FROM sync_history WHERE status = 'stalled'")
            attempts = await pool.fetchval("SELECT coalesce(max(attempts), 0) FROM pending_fetches")
            await control.set_faults({})

            comparison = await compared(stack, pool, sellers)
            await until(pool, "SELECT NOT EXISTS (SELECT FROM allegro_outages)")

    assert spent < 60  # probes, and the attempts that each process needs to notice
    assert during <= {"running", "stalled", "completed"}
    assert stalled > 0
    assert attempts <= 2
    assert comparison.differences == 0, comparison.shown
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert {row["status"] for row in await pool.fetch("SELECT status FROM sync_history")} == {"completed"}
    assert await pool.fetchval("SELECT max(consecutive_failures) FROM active_sync_schedules") <= 3


_NOTE_OUTAGES = """
CREATE TABLE noted_outages (since timestamptz);
CREATE FUNCTION note_outage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO noted_outages VALUES (NEW.since); RETURN NULL; END $$;
CREATE TRIGGER note_outage AFTER INSERT ON allegro_outages FOR EACH ROW EXECUTE FUNCTION note_outage();
"""


async def test_a_seller_whose_every_call_fails_is_no_outage_for_the_others(
    stack: BenchStack, pool: asyncpg.Pool
) -> None:
    await pool.execute(_NOTE_OUTAGES)
    broken, *others = await begin(stack, pool)
    async with stack.control() as control:
        with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
            await until(pool, "SELECT count(*) = 3 FROM sync_history WHERE kind = 'initial' AND status = 'completed'")
            await control.set_faults({"http_5xx": {"rate": 1.0, "sellers": [broken.seller_id]}})
            failures = "SELECT consecutive_failures >= 2 FROM active_sync_schedules WHERE user_token_id = $1"
            await until(pool, failures, broken.token_id)

            loaded = {
                row[0]: row[1] for row in await pool.fetch("SELECT user_token_id, count(*) FROM orders GROUP BY 1")
            }
            await control.start_live(_LIVE_ORDERS, 10, step_seconds=1)
            for one in others:
                orders = "SELECT count(*) >= $2 FROM orders WHERE user_token_id = $1"
                await until(pool, orders, one.token_id, loaded[one.token_id] + _LIVE_ORDERS // _SELLERS)
            stored_of_broken = await pool.fetchval(
                "SELECT count(*) FROM orders WHERE user_token_id = $1", broken.token_id
            )
            await control.set_faults({})
            await pool.execute("UPDATE active_sync_schedules SET next_run = now()")  # it would be minutes

            comparison = await compared(stack, pool, [broken, *others])

    assert stored_of_broken == loaded[broken.token_id]
    assert await pool.fetchval("SELECT count(*) FROM noted_outages") == 0
    assert comparison.differences == 0, comparison.shown
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_what_seems_an_outage_while_one_seller_alone_calls_does_not_stop_the_next(
    stack: BenchStack, pool: asyncpg.Pool
) -> None:
    broken, *others = await stack.connect_sellers(pool, _SELLERS)
    fault = {"sellers": [broken.seller_id]}
    other_ids = [seller.seller_id for seller in others]
    async with stack.control() as control:
        await give_schedules(pool, [broken, *others], interval_seconds=1)
        # Its journal can be read at first: its orders are looked at before anybody else has one, which seems an outage.
        await control.set_faults({"http_5xx": {**fault, "endpoints": ["list", "detail"]}})
        with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
            await control.start_live(_LIVE_ORDERS, 50, sellers=[broken.seller_id], events_per_order=1)
            await until(pool, "SELECT EXISTS (SELECT FROM allegro_outages)")
            await control.set_faults({"http_5xx": fault})
            await until(pool, _FAILED_JOURNAL, broken.token_id)
            await control.start_live(_FEW_ORDERS, 2, sellers=other_ids, events_per_order=1)
            await until(pool, _ARRIVED, [seller.token_id for seller in others], _FEW_ORDERS)
            await until(pool, "SELECT NOT EXISTS (SELECT FROM allegro_outages)")
            await until(pool, _PARKED, broken.token_id)
            kept = await pool.fetchrow(_KEPT, broken.token_id)

    assert tuple(kept) == (0, 0)
