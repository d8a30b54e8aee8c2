"""A pause longer than Allegro keeps events: what the journal forgot is listed by itself, and said so (P1, B7)."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, bench_stack, give_schedules
from shared.database import open_pool
from tests.e2e.waiting import TEST_SECONDS, compared, until

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_ORDERS = 1000

# More than Allegro's 60 days; everything up to then had been stored, and is not in this database any more.
_PAUSED = """
WITH cursors AS (
    UPDATE journal_cursors
       SET stored_event_id = (extract(epoch FROM now() - interval '61 days') * 1000000)::bigint, covered_event_id = 1
)
UPDATE active_sync_schedules SET last_run = now() - interval '61 days', last_success = now() - interval '61 days'
"""


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    options = ["--sellers", "1", "--orders", str(_ORDERS), "--history-days", "300", *NO_LIMITS]
    environment = {"KAFKA_SESSION_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_PARTITIONS": "3", "SYNC_LIST_LAG_SECONDS": "1"}
    with bench_stack(options, environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def test_what_the_journal_forgot_is_listed_by_itself_and_said_so(stack: BenchStack, pool: asyncpg.Pool) -> None:
    sellers = await stack.connect_sellers(pool, 1)
    await give_schedules(pool, sellers, interval_seconds=1)
    await pool.execute(_PAUSED)

    with stack.services(stack.environment(), poller=2, enricher=1, writer=1):
        await until(pool, "SELECT bool_and(finished_at IS NOT NULL) FROM task_history")
        await until(pool, "SELECT last_success > now() - interval '1 hour' FROM active_sync_schedules")
        comparison = await compared(stack, pool, sellers)

    tasks = await pool.fetch("SELECT kind, status, requested_by FROM task_history")
    assert [tuple(task) for task in tasks] == [("full", "completed", "the journal cursor is older than the journal")]
    assert comparison.differences == 0, comparison.shown
    assert comparison.orders == _ORDERS
    assert comparison.events > 0
