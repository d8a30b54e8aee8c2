"""How many requests the work costs (promise P6): the services as processes, the simulated Allegro counts."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import timedelta

import asyncpg
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, Seller, bench_stack, give_schedules
from shared.database import open_pool
from shared.sync_start import begin_sync
from tests.e2e.waiting import PATIENCE_SECONDS, TEST_SECONDS, until

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_LOOK_SECONDS = 0.2
_ORDERS = 5000


@pytest.fixture
def orders() -> int:
    """Of each seller."""
    return _ORDERS


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str, orders: int) -> Iterator[BenchStack]:
    """A simulated Allegro without limits; `--history-days`: all of a seller's past is young enough for the journal."""
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    options = ["--sellers", "2", "--orders", str(orders), "--history-days", "50", *NO_LIMITS]
    environment = {"KAFKA_SESSION_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_PARTITIONS": "3"}
    with bench_stack(options, environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def looks(stack: BenchStack) -> int:
    """Requests that were spent on orders: everything but the journal and the tokens."""
    async with stack.control() as control:
        requests: Mapping[str, int] = await control.requests()
    return sum(requests.get(endpoint, 0) for endpoint in ("list", "detail", "event_stats"))


async def events_of(stack: BenchStack, seller: Seller) -> int:
    async with stack.control() as control:
        by_seller = (await control.summary())["by_seller"]
    return next(int(one["events"]) for one in by_seller if one["seller_id"] == seller.seller_id)


async def events_after_the_cursors(stack: BenchStack, pool: asyncpg.Pool, sellers: Sequence[Seller]) -> int:
    count = 0
    async with stack.control() as control:
        for seller in sellers:
            cursor = await pool.fetchval(
                "SELECT stored_event_id FROM journal_cursors WHERE user_token_id = $1", seller.token_id
            )
            async for line in control.ledger("events", seller.seller_id):
                count += int(json.loads(line)["event_id"]) > cursor
    return count


@pytest.mark.parametrize("orders", [1000, 5000])
async def test_an_initial_load_and_a_comparison_cost_a_request_for_a_hundred_orders(
    stack: BenchStack, pool: asyncpg.Pool, orders: int
) -> None:
    (seller,) = await stack.connect_sellers(pool, 1)
    with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
        async with pool.acquire() as connection, connection.transaction():
            await begin_sync(
                connection, seller.token_id, interval=timedelta(seconds=2), full_interval=timedelta(days=10)
            )
        await until(pool, "SELECT count(*) = $1 FROM orders", orders)
        await until(pool, "SELECT count(*) = $1 FROM order_events", await events_of(stack, seller))
        await until(pool, "SELECT count(*) = 0 FROM pending_fetches")
        await until(pool, "SELECT count(*) = 1 FROM task_history WHERE status = 'completed'")
        spent = await looks(stack)
        await pool.execute(
            "INSERT INTO task_history (task_id, user_token_id, user_id, kind)"
            " SELECT gen_random_uuid(), id, user_id, 'reconcile' FROM user_tokens WHERE id = $1",
            seller.token_id,
        )
        await until(pool, "SELECT count(*) = 2 FROM task_history WHERE status = 'completed'")
        compared = await looks(stack) - spent

    assert await pool.fetchval("SELECT count(*) FROM orders") == orders
    # The journal's newest event is younger than what lists are sure to show, and its order is fetched: one more, which
    # shows where there are few pages.
    assert spent <= 0.011 * orders + (1 if orders < 5000 else 0)
    assert compared / orders <= 0.01


async def test_a_burst_of_five_events_costs_one_fetch(stack: BenchStack, pool: asyncpg.Pool) -> None:
    sellers = await stack.connect_sellers(pool, 2)
    await give_schedules(pool, sellers, interval_seconds=2)
    async with stack.control() as control:
        await control.start_live(400, 400, events_per_order=5, step_seconds=0.05, history=0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await control.live())["active"]:  # noqa: ASYNC110 - another process' work
                await asyncio.sleep(_LOOK_SECONDS)
        written = (await control.live())["events_written"]

    with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
        await until(pool, "SELECT count(*) = $1 FROM order_events", written)
        await until(pool, "SELECT count(*) = 0 FROM pending_fetches")
        spent = await looks(stack)

    orders = await pool.fetchval("SELECT count(*) FROM orders")
    assert (orders, written >= 4 * orders) == (400, True)
    assert spent / orders <= 1.05


async def test_catching_up_costs_a_request_for_many_orders(stack: BenchStack, pool: asyncpg.Pool) -> None:
    sellers = await stack.connect_sellers(pool, 2)
    await give_schedules(pool, sellers, interval_seconds=2)
    await pool.execute(
        "UPDATE journal_cursors SET stored_event_id = stored_event_id - 20 * 24 * 3600 * 1000000::bigint,"
        " covered_event_id = 1"
    )
    expected = await events_after_the_cursors(stack, pool, sellers)

    with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
        await until(pool, "SELECT count(*) >= $1 FROM order_events", expected)
        await until(pool, "SELECT count(*) = 0 FROM pending_fetches")
        spent = await looks(stack)

    orders = await pool.fetchval("SELECT count(*) FROM orders")
    assert orders >= _ORDERS / 3
    assert spent / orders <= 0.05
