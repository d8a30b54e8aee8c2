"""PostgreSQL is away for a while: work waits and goes on, nothing is lost, counted twice or set aside (E2, P1, P2)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta

import asyncpg
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, bench_stack
from shared.allegro.connection import connect
from shared.database import open_pool
from shared.encryption import Keyring
from shared.health import Health
from shared.service import BackgroundLoops
from shared.sync_start import begin_sync
from tests.e2e.waiting import TEST_SECONDS, compared, until
from tests.shared.allegro.builders import KEYS, settings

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_SELLERS = 2
_ORDERS = 3000
_LIVE_ORDERS = 200
_AWAY_SECONDS = 10.0


@pytest.fixture
def stack(kafka_bootstrap: str) -> Iterator[BenchStack]:
    """With a PostgreSQL of its own, which may be stopped."""
    sellers = ["--sellers", str(_SELLERS), "--orders", str(_ORDERS), "--history-days", "300"]
    options = [*sellers, "--latency-ms", "20", *NO_LIMITS]
    environment = {
        "KAFKA_SESSION_TIMEOUT_SECONDS": "6",
        "KAFKA_TOPIC_PARTITIONS": "3",
        "POLLER_LEASE_SECONDS": "20",
        "SYNC_LIST_LAG_SECONDS": "1",
    }
    with bench_stack(options, environment, choice={"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}) as running:
        yield running


@pytest.fixture
async def pool(stack: BenchStack) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(stack.environment()["DATABASE_URL"], service="test", max_size=4)
    yield opened
    opened.terminate()


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_while_the_database_is_away_nothing_is_set_aside_and_then_everything_goes_on(
    stack: BenchStack, pool: asyncpg.Pool, end: str
) -> None:
    sellers = await stack.connect_sellers(pool, _SELLERS)
    for seller in sellers:
        async with pool.acquire() as connection, connection.transaction():
            await begin_sync(
                connection, seller.token_id, interval=timedelta(seconds=1), full_interval=timedelta(days=10)
            )
    with stack.services(stack.environment(), poller=1, enricher=1, writer=1) as replicas:
        async with stack.control() as control:
            await control.start_live(_LIVE_ORDERS, 10, step_seconds=1)
        await until(pool, "SELECT sum(orders_processed) > 500 FROM sync_history")

        await asyncio.to_thread(getattr(stack.database, end))
        await asyncio.sleep(_AWAY_SECONDS)  # the length of the outage is what is tested
        alive = [replica.child.running for each in replicas.values() for replica in each]
        stack.database.start()  # its end is tied to the thread that starts it
        await pool.expire_connections()
        comparison = await compared(stack, pool, sellers)

    assert alive == [True] * 3
    assert comparison.differences == 0, comparison.shown
    assert comparison.orders >= _SELLERS * _ORDERS
    assert {row["status"] for row in await pool.fetch("SELECT status FROM sync_history")} == {"completed"}
    initial = await pool.fetch("SELECT orders_processed, orders_added FROM sync_history WHERE kind = 'initial'")
    assert all(row["orders_processed"] >= _ORDERS for row in initial)
    assert await pool.fetchval("SELECT sum(orders_added) = (SELECT count(*) FROM orders) FROM sync_history")
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await pool.fetchval("SELECT count(*) FROM pending_fetches") == 0


async def test_a_start_that_has_its_pool_already_waits_for_it(
    stack: BenchStack, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """As where Kafka, which is waited for after the pool was opened, comes back when PostgreSQL goes."""
    await asyncio.to_thread(stack.database.stop)
    async with AsyncExitStack() as opened:
        loops = await opened.enter_async_context(BackgroundLoops(Health()))
        connecting = asyncio.create_task(connect(opened, settings(), Keyring.parse(KEYS), pool, loops))
        while "is not reachable yet" not in caplog.text and not connecting.done():  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0)
        stack.database.start()

        allegro = await connecting

    assert allegro.clock.now().year >= 2026
