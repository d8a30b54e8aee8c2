"""An order that could not be fetched is tried again, whatever is restarted or lost meanwhile (E2, P1)."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, bench_stack, give_schedules
from shared.database import open_pool
from tests.e2e.waiting import TEST_SECONDS, until

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_ATTEMPTS_OF_A_LOOK = 3


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    environment = {"KAFKA_SESSION_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_PARTITIONS": "3"}
    with bench_stack(["--sellers", "1", "--orders", "1", *NO_LIMITS], environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def test_a_parked_order_outlives_every_process_and_the_brokers_data(
    stack: BenchStack, pool: asyncpg.Pool
) -> None:
    sellers = await stack.connect_sellers(pool, 1)
    async with stack.control() as control:
        await control.set_faults({"http_5xx": {"endpoints": ["detail"], "times": _ATTEMPTS_OF_A_LOOK}})
        await give_schedules(pool, sellers, interval_seconds=1)
        with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
            await control.start_live(1, 10, events_per_order=1)
            await until(pool, "SELECT EXISTS (SELECT FROM pending_fetches WHERE attempts > 0)")
            asked = (await control.requests())["detail"]
            parked = await pool.fetchrow(
                "SELECT attempts, last_error, next_attempt_at > now() AS later FROM pending_fetches"
            )
        before = await pool.fetchrow("SELECT status, events_stored, orders_processed FROM sync_history")

        await pool.execute("UPDATE pending_fetches SET next_attempt_at = now()")  # rather than waiting half a minute
        # New topics: nothing is left of what the broker held.
        with stack.services(stack.fresh_topics(partitions=3), poller=1, enricher=1, writer=1):
            await until(pool, "SELECT completed_at IS NOT NULL FROM sync_history")
        asked_again = (await control.requests())["detail"] - asked

    assert asked == _ATTEMPTS_OF_A_LOOK
    assert (parked["attempts"], parked["later"]) == (1, True)
    assert "50" in parked["last_error"]
    assert tuple(before) == ("running", 1, 0)
    after = await pool.fetchrow("SELECT status, orders_processed, orders_added, requests FROM sync_history")
    assert tuple(after) == ("completed", 1, 1, 1 + _ATTEMPTS_OF_A_LOOK + 1)
    assert asked_again == 1
    assert await pool.fetchval("SELECT count(*) FROM pending_fetches") == 0
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 0
