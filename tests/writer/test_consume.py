"""The writer between a real broker and a real PostgreSQL: what is wrong with one record stops no other (P1, P2, P9)."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from prometheus_client import REGISTRY

from services.writer.batch import Batch
from services.writer.consume import Writer
from services.writer.metrics import Metrics
from services.writer.store import RefusedError, Store, Written
from shared.database import open_pool
from shared.delivery import open_consumer
from shared.kafka import MAX_RECORD_BYTES, RecordProducer
from shared.messages import RawJson, Record, WindowFinished, WindowPlace
from shared.settings import KafkaSettings
from tests.builders import A_RUN, AN_ORDER, NOON, a_run, a_token, after, an_event, an_observation, consumed

pytestmark = pytest.mark.integration

DEEP = b'{"schema":1,"kind":"order-observed","order":' + b"[" * 100_000


@pytest.fixture
def settings(kafka_bootstrap: str, fresh_topics: str) -> KafkaSettings:
    return KafkaSettings(
        kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics, kafka_session_timeout_seconds=6
    )


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=4)
    await a_token(pool)
    yield pool
    await pool.close()


@pytest.fixture
async def producer(settings: KafkaSettings) -> AsyncIterator[RecordProducer]:
    async with RecordProducer(settings, service="test") as producer:
        yield producer


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics()
    yield made
    for collector in vars(made).values():
        REGISTRY.unregister(collector)


def a_writer(settings: KafkaSettings, store: Store, producer: RecordProducer, metrics: Metrics) -> Writer:
    return Writer(
        partial(open_consumer, settings, group="writer", service="test", max_poll_interval_ms=60_000),
        store,
        producer,
        settings.topics,
        metrics,
        max_records=500,
        progressed=lambda: None,
        stored=lambda: None,
    )


@asynccontextmanager
async def running(writer: Writer) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Wait for a condition that the tables fulfil sooner or later."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - the condition is a row in PostgreSQL
            await asyncio.sleep(0.05)


async def send(
    settings: KafkaSettings, records: Sequence[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes | None]]]]
) -> None:
    raw = AIOKafkaProducer(bootstrap_servers=list(settings.kafka_bootstrap_servers))
    await raw.start()
    try:
        for topic, key, value, headers in records:
            await raw.send_and_wait(topic, key=key, value=value, headers=headers)
    finally:
        await raw.stop()


async def committed(settings: KafkaSettings, topic: str) -> int:
    reader = open_consumer(settings, group="writer", service="test", max_poll_interval_ms=60_000)
    await reader.start()
    try:
        offsets = [await reader.committed(TopicPartition(topic, number)) for number in range(3)]
    finally:
        await reader.stop()
    return sum(offset or 0 for offset in offsets)


async def test_unreadable_records_are_set_aside_with_their_bytes_and_block_nothing(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    orders = settings.topics.orders
    await send(
        settings,
        [
            (orders, b"1", b"not json at all", []),
            (orders, b"1", None, []),
            (orders, None, b"\xff\xfe", [("odd", b"\xff")]),
            (orders, b"1", b'{"schema":9,"kind":"order-observed"}', []),
            (orders, b"1", DEEP, []),
            (orders, b"1", an_observation().encode(), [("not-utf-8", b"\xfe\xff"), ("null", None)]),
        ],
    )
    async with running(a_writer(settings, Store(pool), producer, metrics)):
        await until(partial(pool.fetchval, "SELECT count(*) = 1 FROM orders"))
        await until(partial(pool.fetchval, "SELECT count(*) = 5 FROM dead_letters"))
        await until(lambda: _is(committed(settings, orders), 6))

    letters = await pool.fetch("SELECT value, error_type, attempts FROM dead_letters ORDER BY id")
    assert {bytes(letter["value"]) if letter["value"] else None for letter in letters} == {
        b"not json at all",
        None,
        b"\xff\xfe",
        b'{"schema":9,"kind":"order-observed"}',
        DEEP,
    }
    assert {letter["error_type"] for letter in letters} == {"UnreadableRecordError"}


async def test_toxic_headers_end_no_loop_wherever_they_come(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    """Numbers that are none, names with a NUL: read again and again, they would stop everything behind them."""
    causes: list[tuple[str, bytes | None]] = [
        (f"dead-letter-{name}", toxin)
        for name in ("attempts", "partition", "offset", "topic", "service", "error")
        for toxin in (b"9" * 5000, "\u00b2".encode(), b"a\0b", b"\xff", None)
    ]
    odd: list[tuple[str, bytes | None]] = [("a\0b", b"x"), ("\0", None), ("", b"\0")]
    records = [
        (topic, key, b"%d" % number, [header])
        for topic in (settings.topics.orders, settings.topics.order_events, settings.topics.dead_letters)
        for number, header in enumerate([*causes, *odd])
        for key in (b"1", None, b"\xff\0", b"9" * 5000)
    ]
    await send(settings, [*records, (settings.topics.orders, b"1", an_observation().encode(), [("a\0b", b"x")])])

    async with running(a_writer(settings, Store(pool), producer, metrics)):
        await until(partial(pool.fetchval, "SELECT count(*) = 1 FROM orders"))
        await until(lambda: _is(committed(settings, settings.topics.dead_letters), len(records)))

    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == len(records)


async def test_headers_that_the_database_refuses_do_not_cost_the_dead_letter(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    """Whatever it is that it refuses: a record that lands nowhere comes again for ever."""

    class Refusing(Store):
        async def apply(self, batch: Batch, **options: object) -> Written:
            if any(letter.headers for letter in batch.unreadable):
                raise RefusedError("headers")
            return await super().apply(batch, **options)  # type: ignore[arg-type]

    writer = a_writer(settings, Refusing(pool), producer, metrics)

    written = await writer.store([consumed(b"no json", headers=(("odd", b"x"),)), consumed(an_observation(), offset=1)])

    assert (written.dead_letters, written.orders_added) == (1, 1)
    letter = await pool.fetchrow("SELECT value, headers, error FROM dead_letters")
    assert (bytes(letter["value"]), letter["headers"]) == (b"no json", b"[]")
    assert "not kept" in letter["error"]


@pytest.mark.parametrize("refused", ["headers", "walk", "both"])
async def test_what_the_database_refuses_of_a_dead_letter_costs_neither_its_place_in_a_walk_nor_its_headers_needlessly(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics, refused: str
) -> None:
    class Refusing(Store):
        async def apply(self, batch: Batch, **options: object) -> Written:
            if batch.observations:
                raise RefusedError("document")
            if refused in {"headers", "both"} and any(letter.headers for letter in batch.unreadable):
                raise RefusedError("headers")
            if refused in {"walk", "both"} and batch.walked:
                raise RefusedError("walk")
            return await super().apply(batch, **options)  # type: ignore[arg-type]

    await a_run(pool)
    place = WindowPlace(run_id=A_RUN, attempt=1, sequence=0)
    record = an_observation(by="list", place=place, bought_at=after(5))
    writer = a_writer(settings, Refusing(pool), producer, metrics)

    written = await writer.store([consumed(record, headers=(("odd", b"x"),))])

    assert written.dead_letters == 1
    kept = await pool.fetchval("SELECT headers FROM dead_letters") != b"[]"
    passed = await pool.fetchval("SELECT next_sequence FROM run_windows") == 1
    assert (kept, passed) == (refused == "walk", refused == "headers")


async def test_a_dead_letter_that_kafka_does_not_take_is_stored_all_the_same(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    """A record as large as may be, with its cause, is larger than may be."""
    writer = a_writer(settings, Store(pool), producer, metrics)

    written = await writer.store([consumed(bytes(MAX_RECORD_BYTES), offset=0), consumed(b"no json", offset=1)])

    assert written.dead_letters == 2
    assert await pool.fetchval("SELECT max(length(value)) FROM dead_letters") == MAX_RECORD_BYTES


async def test_documents_that_jsonb_refuses_are_kept_byte_for_byte_among_others(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    toxic = {
        "nul": b'{"id":"nul","status":"NEW","note":"a\\u0000b"}',
        "nul-in-a-column": b'{"id":"nul-in-a-column","status":"N\\u0000W"}',
        "huge": b'{"id":"huge","status":"NEW","n":1e999999}',
        "half-a-pair": rb'{"id":"half-a-pair","status":"NEW","note":"\ud800 \ud83d\ude00","n":1.10}',
        "not-utf-8": b'{"id":"not-utf-8","status":"NEW","note":"\xff\xc3("}',
    }
    records: list[Record] = [an_observation(order_id=f"good-{number}") for number in range(20)]
    for number, (order_id, body) in enumerate(toxic.items()):
        records.insert(3 * number, an_observation(order_id=order_id, body=RawJson(body)))
    writer = a_writer(settings, Store(pool), producer, metrics)

    await writer.store([consumed(record, topic="x-orders", offset=number) for number, record in enumerate(records)])

    stored = {row["allegro_order_id"]: row for row in await pool.fetch("SELECT * FROM orders")}
    kept = {order_id: bytes(stored[order_id]["order_raw"] or stored[order_id]["order_data"]) for order_id in stored}
    assert toxic.keys() <= stored.keys(), [dict(row) for row in await pool.fetch("SELECT error FROM dead_letters")]
    assert len(stored) == 25
    for exact in ("nul", "huge", "half-a-pair", "not-utf-8"):
        assert kept[exact] == toxic[exact]
    assert json.loads(stored["half-a-pair"]["order_data"])["note"] == "\ufffd \U0001f600"
    assert json.loads(stored["nul"]["order_data"])["note"] == "a\ufffdb"
    assert all(stored[f"good-{number}"]["order_raw"] is None for number in range(20))


async def test_a_record_that_the_database_never_takes_is_found_among_many_and_set_aside(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    records = [consumed(an_observation(order_id=f"o-{number}"), offset=number) for number in range(40)]
    records[17] = consumed(an_observation(order_id="of-nobody", token_id=4711), key=b"4711", offset=17)
    writer = a_writer(settings, Store(pool), producer, metrics)

    written = await writer.store(records)

    assert (written.orders_added, written.dead_letters) == (39, 1)
    letter = await pool.fetchrow("SELECT error, value, user_token_id FROM dead_letters")
    assert "ForeignKeyViolationError" in letter["error"]
    assert (bytes(letter["value"]), letter["user_token_id"]) == (records[17].value, 4711)


async def test_a_walk_goes_on_behind_an_order_that_the_database_never_takes(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    """Its place would else be a gap for ever: the listing would begin there again and again, and never end."""
    await a_run(pool)
    too_long_for_an_index = secrets.token_hex(10_000)
    walked: list[Record] = [
        an_observation(
            order_id=f"o-{number}\0" if number == 3 else f"o-{number}",
            by="list",
            place=WindowPlace(run_id=A_RUN, attempt=1, sequence=number),
            bought_at=after(number),
            buyer={"login": too_long_for_an_index if number == 17 else "Client:1"},
        )
        for number in range(40)
    ]
    end = WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=40, orders_expected=40, requests=1)
    writer = a_writer(settings, Store(pool), producer, metrics)

    written = await writer.store([consumed(record, offset=number) for number, record in enumerate([*walked, end])])

    assert (written.orders_added, written.dead_letters) == (38, 2)
    run = await pool.fetchrow("SELECT status, orders_processed, orders_added FROM sync_history")
    assert tuple(run) == ("completed", 40, 38)
    assert await pool.fetchval("SELECT next_sequence FROM run_windows") == 40


async def test_a_walk_goes_on_behind_an_order_that_the_writer_cannot_read(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    await a_run(pool)
    walked: list[Record] = [
        an_observation(
            order_id=f"o-{number}",
            by="list",
            place=WindowPlace(run_id=A_RUN, attempt=1, sequence=number),
            body=RawJson(b'{"status":"NEW"}') if number == 1 else None,
        )
        for number in range(3)
    ]
    end = WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=3, orders_expected=3, requests=1)
    writer = a_writer(settings, Store(pool), producer, metrics)

    written = await writer.store([consumed(record, offset=number) for number, record in enumerate([*walked, end])])

    assert (written.orders_added, written.dead_letters) == (2, 1)
    assert tuple(await pool.fetchrow("SELECT status, orders_processed FROM sync_history")) == ("completed", 3)


@pytest.mark.parametrize(
    ("body", "fields"),
    [(RawJson(b'{"status":"NEW"}'), {}), (None, {"buyer": {"login": secrets.token_hex(10_000)}})],
    ids=["unreadable", "refused"],
)
async def test_an_owed_look_that_ends_as_a_dead_letter_is_owed_no_more(
    settings: KafkaSettings,
    pool: asyncpg.Pool,
    producer: RecordProducer,
    metrics: Metrics,
    body: RawJson | None,
    fields: dict[str, Any],
) -> None:
    """It would else be made again and again, with a new dead letter each time; and its run would never end."""
    writer = a_writer(settings, Store(pool), producer, metrics)
    await writer.store([consumed(an_event(100))])
    owed = await pool.fetchval("SELECT count(*) FROM pending_fetches")

    await writer.store([consumed(an_observation(after(1), body=body, **fields), offset=1)])

    assert (owed, await pool.fetchval("SELECT count(*) FROM pending_fetches")) == (1, 0)
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 1
    assert await pool.fetchval("SELECT status FROM sync_history") == "completed"


async def test_the_cursor_goes_on_behind_an_event_that_the_database_never_takes(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    too_long_for_an_index = secrets.token_hex(10_000)
    events = [an_event(100), an_event(200, follows=100, order_id=too_long_for_an_index), an_event(300, follows=200)]
    writer = a_writer(settings, Store(pool), producer, metrics)

    written = await writer.store([consumed(event, offset=number) for number, event in enumerate(events)])

    assert (written.events, written.dead_letters) == (2, 1)
    assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == 300


async def test_a_failure_in_the_middle_of_a_batch_stores_all_of_it_later_and_none_twice(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    """PostgreSQL goes away while a batch is stored: it waits and comes again; nothing is set aside for that."""

    class Flickering(Store):
        failures = 0

        async def apply(self, batch: Batch, **options: object) -> Written:
            written = await super().apply(batch, **options)  # type: ignore[arg-type]
            if self.failures < 2:
                self.failures += 1
                raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            return written

    events = settings.topics.order_events
    orders = settings.topics.orders
    await producer.publish_all(
        events, [(b"1", an_event(100).encode(), []), (b"1", an_event(200, follows=100).encode(), [])]
    )
    await producer.publish_all(orders, [(b"1", an_observation(after(1)).encode(), [])])
    async with running(a_writer(settings, Flickering(pool), producer, metrics)):
        await until(partial(pool.fetchval, "SELECT stored_event_id = 200 FROM journal_cursors"))
        await until(partial(pool.fetchval, "SELECT count(*) = 1 FROM sync_history WHERE status = 'completed'"))
        await until(lambda: _is(committed(settings, orders), 1))

    run = await pool.fetchrow("SELECT events_stored, orders_processed, orders_added FROM sync_history")
    assert tuple(run) == (2, 1, 1)
    assert await pool.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_reading_everything_again_from_the_beginning_changes_nothing(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    orders = settings.topics.orders
    records = [an_observation(after(number), order_id=f"o-{number % 7}", note=number) for number in range(50)]
    await producer.publish_all(orders, [(record.key, record.encode(), []) for record in records])
    writer = a_writer(settings, Store(pool), producer, metrics)
    async with running(writer):
        await until(lambda: _is(committed(settings, orders), 50))
    before = await pool.fetch("SELECT xmin::text, * FROM orders ORDER BY id")

    await writer.store([consumed(record, offset=number) for number, record in enumerate(records)])

    assert await pool.fetch("SELECT xmin::text, * FROM orders ORDER BY id") == before
    assert AN_ORDER not in {row["allegro_order_id"] for row in before}
    assert max(row["observed_at"] for row in before) == after(49)
    assert before[0]["observed_at"] > NOON


async def _is(value: Awaitable[int], wanted: int) -> bool:
    return await value == wanted


class BuggyStore(Store):
    """Fails once, by a bug."""

    failed = False

    async def apply(self, *batch: Any, **storable: Any) -> Written:
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError
        return await super().apply(*batch, **storable)


class WatchedStore(Store):
    """Notes which sellers' records are in work at the same time."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        super().__init__(pool)
        self.in_work: list[frozenset[int]] = []
        self.side_by_side: list[tuple[frozenset[int], ...]] = []

    async def apply(self, batch: Batch, *, storable: Any = None) -> Written:
        tokens = frozenset(batch.token_ids())
        self.in_work.append(tokens)
        self.side_by_side.append(tuple(self.in_work))
        try:
            return await super().apply(batch, storable=storable)
        finally:
            self.in_work.remove(tokens)


async def test_large_batches_are_two_transactions_at_a_time_and_never_of_one_seller(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    for number in range(2, 7):
        await a_token(pool, user_id=f"shop-{number}")
    records = [
        an_observation(token_id=1 + number % 6, order_id=f"o-{number}", note="x" * 2000) for number in range(4000)
    ]
    common: list[tuple[str, bytes | None]] = []
    await producer.publish_all(settings.topics.orders, [(record.key, record.encode(), common) for record in records])
    store = WatchedStore(pool)

    async with running(a_writer(settings, store, producer, metrics)):
        await until(partial(pool.fetchval, "SELECT count(*) = 4000 FROM orders"))
        await until(lambda: _is(committed(settings, settings.topics.orders), 4000))

    assert max(map(len, store.side_by_side)) == 2
    for together in store.side_by_side:
        assert sum(map(len, together)) == len(frozenset().union(*together))


async def test_smaller_batches_are_one_transaction_each_however_many_come(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    await a_token(pool, user_id="shop-2")
    common: list[tuple[str, bytes | None]] = []
    store = WatchedStore(pool)

    async with running(a_writer(settings, store, producer, metrics)):
        for stored in range(100, 700, 100):
            records = [an_observation(token_id=1 + number % 2, order_id=f"{stored}-{number}") for number in range(100)]
            await producer.publish_all(
                settings.topics.orders, [(record.key, record.encode(), common) for record in records]
            )
            await until(partial(pool.fetchval, f"SELECT count(*) = {stored} FROM orders"))

    assert max(map(len, store.side_by_side)) == 1


async def test_after_a_bug_a_single_record_is_stored_without_waiting_for_a_full_batch(
    settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, metrics: Metrics
) -> None:
    await send(settings, [(settings.topics.orders, b"1", an_observation().encode(), [])])
    writer = a_writer(settings, BuggyStore(pool), producer, metrics)
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(60):
            await writer.run()

    async with running(writer):
        await until(partial(pool.fetchval, "SELECT count(*) = 1 FROM orders"))
