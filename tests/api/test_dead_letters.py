"""Dead letters on a real broker: what goes out again is what came in, byte for byte."""

import asyncio
import base64
import json

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from services.api.settings import ApiSettings
from shared.messages import OrderFetch, OrderMissing, Record
from tests.builders import NOON, a_token, an_event

pytestmark = pytest.mark.integration

HEADERS: list[tuple[str, bytes | None]] = [("correlation-id", b"abc"), ("odd", b"\xff\x00"), ("empty", b"")]
HEADERS += [("null", None)]


HALF = b'{"half": "\xff'


async def a_dead_letter(
    pool: asyncpg.Pool,
    topic: str,
    *,
    key: bytes | None = b"42",
    value: bytes | None = HALF,
    offset: int = 7,
) -> int:
    headers = [(name, None if data is None else base64.b64encode(data).decode()) for name, data in HEADERS]
    identifier: int = await pool.fetchval(
        'INSERT INTO dead_letters (user_token_id, service, topic, partition, "offset", key, value, headers, digest,'
        " error_type, error) VALUES (42, 'writer', $1, 0, $2, $3, $4, $5, '\\x00', 'UnreadableRecordError', 'no JSON')"
        " RETURNING id",
        topic,
        offset,
        key,
        value,
        json.dumps(headers).encode(),
    )
    return identifier


async def consume(settings: ApiSettings, count: int) -> list[tuple[bytes | None, bytes | None, tuple[object, ...]]]:
    consumer = AIOKafkaConsumer(
        settings.topics.orders,
        bootstrap_servers=list(settings.kafka_bootstrap_servers),
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            records = [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()
    return [(record.key, record.value, tuple(record.headers)) for record in records]


async def test_a_replayed_record_is_the_one_that_came(
    api: httpx.AsyncClient, pool: asyncpg.Pool, settings: ApiSettings
) -> None:
    identifier = await a_dead_letter(pool, settings.topics.orders)

    answer = await api.post(f"/api/v1/dead-letters/{identifier}/replay")

    assert (answer.status_code, answer.json()["status"]) == (200, "replayed")
    assert await consume(settings, 1) == [(b"42", HALF, tuple(HEADERS))]


@pytest.mark.parametrize(
    ("record", "owed"),
    [
        (OrderFetch(token_id=1, order_id="a", wanted_after=NOON), ["a"]),
        (an_event(order_id="b"), ["b"]),
        (an_event(order_id="b", fetch=False), []),
        (an_event(order_id=None), []),
        (OrderMissing(token_id=1, order_id="a", observed_at=NOON, reason="404"), []),
        (OrderFetch(token_id=9, order_id="of no token of ours", wanted_after=NOON), []),
    ],
)
async def test_the_look_that_a_replayed_record_asks_for_is_owed(
    api: httpx.AsyncClient, pool: asyncpg.Pool, settings: ApiSettings, record: Record, owed: list[str]
) -> None:
    """The enricher leaves what finds no room to the database, which has to know of it."""
    await a_token(pool)
    identifier = await a_dead_letter(pool, settings.topics.order_events, key=record.key, value=record.encode())

    answer = await api.post(f"/api/v1/dead-letters/{identifier}/replay")

    assert answer.status_code == 200
    rows = await pool.fetch("SELECT allegro_order_id FROM pending_fetches WHERE attempts = 0")
    assert [row[0] for row in rows] == owed


async def test_a_record_is_replayed_once_however_many_ask(
    api: httpx.AsyncClient, pool: asyncpg.Pool, settings: ApiSettings
) -> None:
    identifier = await a_dead_letter(pool, settings.topics.orders)
    marker = await a_dead_letter(pool, settings.topics.orders, value=b"marker", offset=8)

    answers = await asyncio.gather(*(api.post(f"/api/v1/dead-letters/{identifier}/replay") for _ in range(5)))
    await api.post(f"/api/v1/dead-letters/{marker}/replay")

    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert [value for _, value, _ in await consume(settings, 2)] == [HALF, b"marker"]


async def test_a_record_without_key_is_shown_and_replayed(
    api: httpx.AsyncClient, pool: asyncpg.Pool, settings: ApiSettings
) -> None:
    identifier = await a_dead_letter(pool, settings.topics.orders, key=None, value=b"text")

    shown = (await api.get(f"/api/v1/dead-letters/{identifier}")).json()
    await api.post(f"/api/v1/dead-letters/{identifier}/replay")

    assert (shown["key"], shown["text"], shown["size"]) == (None, "text", 4)
    assert [header["name"] for header in shown["headers"]] == ["correlation-id", "odd", "empty", "null"]
    assert [(key, value) for key, value, _ in await consume(settings, 1)] == [(None, b"text")]


async def test_what_kafka_does_not_take_stays_open(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    identifier = await a_dead_letter(pool, "orders", key=None, value=None)

    answer = await api.post(f"/api/v1/dead-letters/{identifier}/replay")

    assert (answer.status_code, answer.json()["title"]) == (409, "Kafka takes no such record")
    assert await pool.fetchval("SELECT status FROM dead_letters") == "open"


async def test_dropping_keeps_the_row_and_lists_filter(api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    first = await a_dead_letter(pool, "orders", offset=1)
    second = await a_dead_letter(pool, "orders", offset=2)

    dropped = await api.post(f"/api/v1/dead-letters/{first}/drop")
    opened = await api.get("/api/v1/dead-letters", params={"status": "open", "token_id": 42})
    every = await api.get("/api/v1/dead-letters", params={"limit": 1})

    assert dropped.json()["status"] == "dropped"
    assert [letter["id"] for letter in opened.json()["items"]] == [second]
    assert [letter["id"] for letter in every.json()["items"]] == [first]
    assert (await api.get(every.url.join(every.links["next"]["url"]))).json()["items"] == opened.json()["items"]


@pytest.mark.parametrize("action", ["replay", "drop"])
async def test_an_unknown_dead_letter_is_not_found(api: httpx.AsyncClient, action: str) -> None:
    answer = await api.post(f"/api/v1/dead-letters/1/{action}")

    assert (answer.status_code, answer.json()["type"]) == (404, "urn:problem-type:orders-backup:unknown-dead-letter")
