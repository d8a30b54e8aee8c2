"""Control over long loads, with replicas of everything: one at a time, and a stop that is heard at once (B7)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from benchmarks.stack import NO_LIMITS, BenchStack, Replica, bench_stack
from shared.database import open_pool
from tests.e2e.waiting import TEST_SECONDS, until

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_ORDERS = 4000
# A second or two on an idle machine; here other tests run beside.
_HEARD_WITHIN = timedelta(seconds=5)
_LATER_SECONDS = 3.0


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    options = ["--sellers", "1", "--orders", str(_ORDERS), "--history-days", "50", "--latency-ms", "200", *NO_LIMITS]
    environment = {"KAFKA_SESSION_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_PARTITIONS": "3"}
    with bench_stack(options, environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


class Apis:
    """The replicas of the API, asked in turn."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._clients = [httpx.AsyncClient(base_url=f"http://127.0.0.1:{one.port}/api/v1/sync") for one in replicas]
        self._next = 0

    async def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        self._next += 1
        answer = await self._clients[self._next % len(self._clients)].post(path, json=body, timeout=30)
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._clients))


async def fetched_after(stack: BenchStack, heard: timedelta, endpoint: str = "list") -> int:
    """Requests that were made later than a stop may take, when it was heard after so long."""
    await asyncio.sleep(max((_HEARD_WITHIN - heard).total_seconds(), 0))
    async with stack.control() as control:
        before = (await control.requests())[endpoint]
        await asyncio.sleep(_LATER_SECONDS)
        return (await control.requests())[endpoint] - before


async def heard_after(pool: asyncpg.Pool, task_id: str) -> timedelta:
    """From the request to stop until the task had ended, by PostgreSQL's clock."""
    await until(pool, f"SELECT finished_at IS NOT NULL FROM task_history WHERE task_id = '{task_id}'")
    elapsed: timedelta = await pool.fetchval(
        "SELECT finished_at - stop_requested_at FROM task_history WHERE task_id = $1", task_id
    )
    return elapsed


async def test_many_requests_are_one_load_and_a_stop_is_heard_in_the_middle_of_it(
    stack: BenchStack, pool: asyncpg.Pool
) -> None:
    await stack.connect_sellers(pool, 1)
    await pool.execute("INSERT INTO journal_cursors (user_token_id, stored_event_id) SELECT id, 0 FROM user_tokens")
    with stack.services(stack.environment(), api=2, poller=3, enricher=2, writer=2) as replicas:
        apis = Apis(replicas["api"])
        try:
            asked = await asyncio.gather(*(apis.post("/manual/bench-0", {"kind": "full"}) for _ in range(20)))
            await until(pool, "SELECT sum(orders_processed) > 500 FROM sync_history")
            await apis.post(f"/tasks/{asked[0]['task_id']}/stop")
            heard = await heard_after(pool, asked[0]["task_id"])
            fetched = await fetched_after(stack, heard)
            # What was read before is stored and counted.
            await until(pool, "SELECT (SELECT count(*) FROM orders) = orders_processed FROM sync_history")
            stopped = await pool.fetchrow("SELECT * FROM sync_history")
            stored = await pool.fetchval("SELECT count(*) FROM orders")

            narrow = await apis.post("/manual/bench-0", {"from": "2026-01-01T00:00:00Z", "to": "2026-02-01T00:00:00Z"})
            wide = await asyncio.gather(*(apis.post("/manual/bench-0", {"kind": "full"}) for _ in range(10)))
            await until(pool, "SELECT bool_and(finished_at IS NOT NULL) FROM task_history")
        finally:
            await apis.close()

    assert len({task["task_id"] for task in asked}) == 1
    assert sorted(task["joined"] for task in asked) == [False] + [True] * 19
    assert heard <= _HEARD_WITHIN
    assert fetched == 0
    assert (stopped["status"], stopped["completed_at"] is None) == ("stopped", False)
    assert stored == stopped["orders_processed"] == stopped["orders_added"]
    assert 500 < stored < _ORDERS
    assert len({task["task_id"] for task in [narrow, *wide]}) == 2
    ends = await pool.fetch("SELECT kind, status FROM sync_history ORDER BY started_at")
    assert [tuple(row) for row in ends] == [("full", "stopped"), ("manual", "completed"), ("full", "completed")]
    overlapping = await pool.fetchval(
        "SELECT count(*) FROM sync_history a JOIN sync_history b ON a.run_id < b.run_id"
        " AND (a.started_at, a.completed_at) OVERLAPS (b.started_at, b.completed_at)"
    )
    assert overlapping == 0
    assert await pool.fetchval("SELECT count(*) FROM orders") == _ORDERS


async def test_a_stop_is_heard_in_the_middle_of_a_thousand_looks_that_many_asked_for(
    stack: BenchStack, pool: asyncpg.Pool
) -> None:
    await stack.connect_sellers(pool, 1)
    await pool.execute("INSERT INTO journal_cursors (user_token_id, stored_event_id) SELECT id, 0 FROM user_tokens")
    wanted = {"kind": "orders", "order_ids": [str(uuid4()) for _ in range(1000)]}
    with stack.services(stack.environment(), api=2, poller=3, enricher=2, writer=2) as replicas:
        apis = Apis(replicas["api"])
        try:
            asked = await asyncio.gather(*(apis.post("/manual/bench-0", wanted) for _ in range(20)))
            await until(pool, "SELECT sum(orders_processed) > 50 FROM sync_history")
            await apis.post(f"/tasks/{asked[0]['task_id']}/stop")
            heard = await heard_after(pool, asked[0]["task_id"])
            fetched = await fetched_after(stack, heard, "detail")
            async with stack.control() as control:
                looked = (await control.requests())["detail"]
        finally:
            await apis.close()

    assert len({task["task_id"] for task in asked}) == 1
    assert heard <= _HEARD_WITHIN
    assert (fetched, looked < 1000) == (0, True)
    assert [tuple(row) for row in await pool.fetch("SELECT kind, status FROM sync_history")] == [("orders", "stopped")]


async def test_a_stop_waits_for_nobody_who_is_away(stack: BenchStack, pool: asyncpg.Pool) -> None:
    """Neither for the writer, before which a load's orders wait, nor for the enricher that walked."""
    await stack.connect_sellers(pool, 1)
    await pool.execute("INSERT INTO journal_cursors (user_token_id, stored_event_id) SELECT id, 0 FROM user_tokens")
    with stack.services(stack.environment(), api=1, poller=1, enricher=1, writer=1) as replicas:
        apis = Apis(replicas["api"])
        try:
            asked = await apis.post("/manual/bench-0", {"kind": "full"})
            await until(pool, "SELECT sum(orders_processed) > 500 FROM sync_history")
            replicas["writer"][0].kill()
            await asyncio.sleep(1)  # the walk goes on and fills what it may have under way
            await apis.post(f"/tasks/{asked['task_id']}/stop")
            without_writer = await heard_after(pool, asked["task_id"])
            fetched = await fetched_after(stack, without_writer)
            replicas["enricher"][0].kill()
            again = await apis.post("/manual/bench-0", {"kind": "full"})
            await until(pool, "SELECT count(*) = 2 FROM sync_history")
            await pool.execute("UPDATE run_windows SET attempt = attempt + 1 WHERE attempt = 0")
            await apis.post(f"/tasks/{again['task_id']}/stop")
            without_enricher = await heard_after(pool, again["task_id"])
        finally:
            await apis.close()

    assert max(without_writer, without_enricher) <= _HEARD_WITHIN
    assert fetched == 0
    assert await pool.fetch("SELECT DISTINCT status FROM sync_history") == [("stopped",)]


async def test_a_stop_is_heard_while_everybody_waits_for_the_end_of_a_block(
    stack: BenchStack, pool: asyncpg.Pool
) -> None:
    await stack.connect_sellers(pool, 1)
    await pool.execute("INSERT INTO journal_cursors (user_token_id, stored_event_id) SELECT id, 0 FROM user_tokens")
    with stack.services(stack.environment(), api=1, poller=1, enricher=1, writer=1) as replicas:
        apis = Apis(replicas["api"])
        try:
            asked = await apis.post("/manual/bench-0", {"kind": "full"})
            await until(pool, "SELECT sum(orders_processed) > 100 FROM sync_history")
            async with stack.control() as control:
                await control.set_faults({"http_429": {"amount": 600, "times": 1}})
            await until(pool, "SELECT bool_or(blocked_until > now() + interval '1 minute') FROM client_budgets")
            await apis.post(f"/tasks/{asked['task_id']}/stop")
            heard = await heard_after(pool, asked["task_id"])
        finally:
            await apis.close()

    run = await pool.fetchrow("SELECT * FROM sync_history")
    assert heard <= _HEARD_WITHIN
    assert run["status"] == "stopped"
    assert await pool.fetchval("SELECT count(*) FROM orders") == run["orders_processed"]
