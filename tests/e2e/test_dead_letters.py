"""Records nobody can process, through the processes and back: replayed as they came, byte for byte (D2)."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.stack import NO_LIMITS, BenchStack, bench_stack
from shared.database import open_pool
from shared.topics import Topics
from tests.e2e.waiting import PATIENCE_SECONDS, TEST_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.e2e, pytest.mark.timeout(TEST_SECONDS)]

_LOOK_SECONDS = 0.1
_PARTITIONS = 3

Raw = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]

RECORDS: list[Raw] = [
    (b"1", b'{"half": "\xff', (("odd", b"\xff\x00"), ("null", None), ("empty", b""))),
    (None, b"without key", ()),
    (b"1", None, (("dead-letter-service", b"of another product"), ("dead-letter-attempts", None))),
    (b"", b"", ()),
    (b"\xff", b'{"schema":1,"kind":"order-missing"}', ()),
]


@pytest.fixture
def stack(database_url: str, kafka_bootstrap: str) -> Iterator[BenchStack]:
    servers = {"DATABASE_URL": database_url, "KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap}
    environment = {"KAFKA_SESSION_TIMEOUT_SECONDS": "6", "KAFKA_TOPIC_PARTITIONS": str(_PARTITIONS)}
    with bench_stack(["--sellers", "1", "--orders", "1", *NO_LIMITS], environment, choice=servers) as running:
        yield running


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def send(bootstrap: str, topic: str) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for key, value, headers in RECORDS:
            await producer.send_and_wait(topic, value, key=key, headers=list(headers))


async def read(bootstrap: str, topic: str, count: int) -> list[Raw]:
    found: list[Raw] = []
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as reader,
    ):
        reader.assign([TopicPartition(topic, number) for number in range(_PARTITIONS)])
        while len(found) < count:
            for records in (await reader.getmany(timeout_ms=200)).values():
                found += [(record.key, record.value, tuple(record.headers)) for record in records]
    return found


async def letters(pool: asyncpg.Pool, count: int) -> list[int]:
    """The open dead letters, once there are so many."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            rows = await pool.fetch("SELECT id FROM dead_letters WHERE status = 'open'")
            if len(rows) >= count:
                return [row["id"] for row in rows]
            await asyncio.sleep(_LOOK_SECONDS)


async def test_what_a_service_set_aside_is_replayed_as_it_came(stack: BenchStack, pool: asyncpg.Pool) -> None:
    environment = stack.environment()
    bootstrap = environment["KAFKA_BOOTSTRAP_SERVERS"]
    topics = Topics(environment["KAFKA_TOPIC_PREFIX"])
    readers = {topics.order_windows: "enricher", topics.orders: "writer"}
    with stack.services(environment, api=1, enricher=1, writer=1) as replicas:
        await asyncio.gather(*(send(bootstrap, topic) for topic in readers))
        first = await letters(pool, 2 * len(RECORDS))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{replicas['api'][0].port}/api/v1") as api:
            answers = [await api.post(f"/dead-letters/{letter}/replay") for letter in first]
        again = await letters(pool, 2 * len(RECORDS))
        records = {topic: await read(bootstrap, topic, 2 * len(RECORDS)) for topic in readers}

    assert {answer.status_code for answer in answers} == {200}
    for topic, service in readers.items():
        assert Counter(records[topic]) == Counter(2 * RECORDS)
        kept = await pool.fetch("SELECT key, value, service, attempts FROM dead_letters WHERE topic = $1", topic)
        assert Counter((row["key"], row["value"]) for row in kept) == Counter(2 * [record[:2] for record in RECORDS])
        assert {(row["service"], row["attempts"]) for row in kept} == {(service, 1)}
    assert not set(first) & set(again)  # nothing was mended meanwhile, so each is a new one
