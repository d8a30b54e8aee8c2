"""One correlation id follows a request: the API's answer, the row, the records on Kafka, every service's log (G2)."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.stack import NO_LIMITS, BenchStack, bench_stack, give_schedules
from shared.database import open_pool
from shared.messages import correlation_id_of
from tests.e2e.waiting import PATIENCE_SECONDS, TEST_SECONDS, until

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_ORDERS = 20
_ID = "follow-me.2026-10-10"
_LOG_FIELDS = {"timestamp", "level", "logger", "message", "user_id", "correlation_id", "extra"}


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    environment = {"KAFKA_SESSION_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_PARTITIONS": "3"}
    with bench_stack(["--sellers", "1", "--orders", str(_ORDERS), *NO_LIMITS], environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def completed(pool: asyncpg.Pool, task_id: str) -> None:
    await until(pool, "SELECT status = 'completed' FROM task_history WHERE task_id = $1", task_id)


def said_under_the_id(log: Path) -> set[tuple[str, str]]:
    """What a service has logged under the id, and about whom; every line of it has the documented shape."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert all(set(line) == _LOG_FIELDS for line in lines)
    return {(line["message"], line["user_id"]) for line in lines if line["correlation_id"] == _ID}


async def find_records_under_the_id(bootstrap: str, topic: str, *, least: int) -> None:
    """Read the topic until so many are found; raises TimeoutError if there are fewer."""
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer,
    ):
        consumer.assign([TopicPartition(topic, number) for number in range(3)])
        await consumer.seek_to_beginning()
        found = 0
        while found < least:
            polled = await consumer.getmany(timeout_ms=200)
            found += sum(correlation_id_of(one.headers) == _ID for records in polled.values() for one in records)


async def test_one_id_is_in_the_answer_the_row_the_records_and_every_log(
    stack: BenchStack, pool: asyncpg.Pool, kafka_bootstrap: str
) -> None:
    sellers = await stack.connect_sellers(pool, 1)
    await give_schedules(pool, sellers, interval_seconds=int(timedelta(hours=1).total_seconds()))
    environment = stack.environment(**stack.fresh_topics(partitions=3), LOG_LEVEL="INFO")
    with stack.services(environment, api=1, poller=1, enricher=1, writer=1) as running:
        base = f"http://127.0.0.1:{running['api'][0].port}/api/v1"
        async with httpx.AsyncClient(base_url=base, headers={"X-Request-ID": _ID}, timeout=30) as client:
            walk = await client.post("/sync/manual/bench-0", json={"kind": "full"})
            await completed(pool, walk.json()["task_id"])
            order_id = await pool.fetchval("SELECT allegro_order_id FROM orders LIMIT 1")
            look = await client.post("/sync/manual/bench-0", json={"kind": "orders", "order_ids": [order_id]})
            await completed(pool, look.json()["task_id"])
        prefix = environment["KAFKA_TOPIC_PREFIX"]
        for topic, least in (("order-windows", 1), ("order-events", 1), ("orders", _ORDERS + 1)):
            await find_records_under_the_id(kafka_bootstrap, f"{prefix}{topic}", least=least)
        logs = {service: said_under_the_id(replicas[0].child.log) for service, replicas in running.items()}

    assert (walk.headers["x-request-id"], look.headers["x-request-id"]) == (_ID, _ID)
    ids = await pool.fetch("SELECT DISTINCT correlation_id FROM task_history")
    assert [row["correlation_id"] for row in ids] == [_ID]
    # Every line of a service names the user, also where the records do not.
    assert logs["api"] == {("request", "bench-0")}
    assert logs["poller"] >= {("task begun", "bench-0")}
    assert logs["enricher"] >= {("walk begun", "bench-0"), ("looked at orders", "bench-0")}
    assert logs["writer"] == {("stored", "bench-0")}
    assert {user for said in logs.values() for _, user in said} == {"bench-0"}
