"""What is larger than Kafka takes, or than we read, stops nothing that comes behind it: one dead letter says so."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from prometheus_client import REGISTRY

from services.enricher.bulk import BulkHandler
from services.enricher.live import LiveHandler
from services.enricher.publish import Publisher as Results
from services.enricher.recent import RecentLooks
from services.poller.journal import JournalPoller
from services.poller.leases import Leases
from services.poller.publish import Publisher as Work
from services.poller.reading import PageReader
from services.poller.slots import Slots
from services.writer.consume import Writer
from services.writer.metrics import Metrics
from services.writer.store import Store
from shared.allegro import client
from shared.allegro.client import AllegroClient
from shared.clock import DatabaseClock, to_event_id
from shared.database import database_now, open_pool
from shared.kafka import MAX_RECORD_BYTES, RecordProducer
from shared.kafka_batches import OutgoingRecord
from shared.messages import OrderFetch, OrderWindow, RawJson, decode
from shared.settings import KafkaSettings
from tests.builders import (
    A_RUN,
    NOON,
    a_run,
    a_token,
    after,
    an_event,
    an_observation,
    an_order_body,
    consumed,
    none_stopped,
)
from tests.fuzz.allegro import an_allegro
from tests.poller.conftest import SETTINGS, a_schedule
from tests.writer.test_consume import a_writer, running, until

pytestmark = pytest.mark.integration

LAG = timedelta(seconds=30)
TOO_LARGE_FOR_KAFKA = 13_000_000
# Smaller than an order that Kafka does not take: what is true of 50 MB is so of 13, and takes less time.
SMALL_PAGES = 12_800_000
_ORDERS = 12
_TOXIC = 1


class Noon:
    """The time at which everything happens."""

    def now(self) -> datetime:
        return after(600)


class Seller:
    """Some orders, bought a second apart, one of them of `size` bytes; and a journal of as many events, the same."""

    def __init__(self, size: int, *, newest: int = to_event_id(NOON)) -> None:
        self.size = size
        self.orders = [self._body(number) for number in range(_ORDERS)]
        self.first_event = newest - _ORDERS + 1

    def _body(self, number: int) -> bytes:
        body = bytes(an_order_body(f"o-{number}", bought_at=after(number)))
        return self._padded(body) if number == _TOXIC else body

    def _event(self, number: int) -> bytes:
        order = {"checkoutForm": {"id": f"o-{number}", "revision": "1"}}
        line = {"id": str(self.first_event + number), "type": "BOUGHT", "order": order}
        body = json.dumps(line).encode()
        return self._padded(body) if number == _TOXIC else body

    def _padded(self, body: bytes) -> bytes:
        return body[:-1] + b',"padding":"' + b"x" * self.size + b'"}'

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, query = request.url.path, request.url.params
        if path == "/order/events":
            chosen = range(max(int(query["from"]) - self.first_event + 1, 0), _ORDERS)[: int(query["limit"])]
            return httpx.Response(200, content=b'{"events":[%b]}' % b",".join(self._event(each) for each in chosen))
        if path != "/order/checkout-forms":
            return httpx.Response(200, content=self.orders[int(path.rpartition("-")[2])])
        since = datetime.fromisoformat(query["lineItems.boughtAt.gte"])
        found = [body for number, body in enumerate(self.orders) if after(number) >= since]
        offset = int(query["offset"])
        page = found[offset : offset + int(query["limit"])]
        return httpx.Response(
            200,
            content=b'{"checkoutForms":[%b],"count":%d,"totalCount":%d}' % (b",".join(page), len(page), len(found)),
        )


class Handed:
    """A producer on a real broker; what that has acknowledged, the writer stores at once."""

    def __init__(self, producer: RecordProducer, writer: Writer) -> None:
        self._producer = producer
        self._writer = writer
        self._offset = 0

    async def publish_all(self, topic: str, records: Iterable[OutgoingRecord]) -> None:
        sent = list(records)
        await self._producer.publish_all(topic, sent)
        self._offset += len(sent)
        await self._writer.store(
            [
                consumed(value, topic=topic, key=key, headers=tuple(headers), offset=self._offset + number)
                for number, (key, value, headers) in enumerate(sent)
            ]
        )


class World:
    """A broker, a database, and what of it came over the other."""

    def __init__(self, settings: KafkaSettings, pool: asyncpg.Pool, producer: RecordProducer, writer: Writer) -> None:
        self.settings = settings
        self.pool = pool
        self.writer = writer
        self.raw_producer = producer
        self.producer: Any = Handed(producer, writer)

    async def stored(self) -> set[str]:
        return {row["allegro_order_id"] for row in await self.pool.fetch("SELECT allegro_order_id FROM orders")}

    async def letters(self) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = await self.pool.fetch("SELECT * FROM dead_letters ORDER BY id")
        return found


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics()
    yield made
    for collector in vars(made).values():
        REGISTRY.unregister(collector)


@pytest.fixture
async def world(kafka_bootstrap: str, fresh_topics: str, database_url: str, metrics: Metrics) -> AsyncIterator[World]:
    settings = KafkaSettings(
        kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics, kafka_session_timeout_seconds=6
    )
    pool = await open_pool(database_url, service="test", max_size=4)
    await a_token(pool)
    async with RecordProducer(settings, service="test") as producer:
        yield World(settings, pool, producer, a_writer(settings, Store(pool), producer, metrics))
    await pool.close()


async def _look_at(world: World, allegro: AllegroClient, numbers: range) -> None:
    handler = LiveHandler(
        allegro,
        Results(world.producer, world.settings.topics),
        Noon(),
        RecentLooks(),
        none_stopped,
        list_lag=LAG,
        detail_concurrency=4,
    )
    events = [an_event(number + 1, order_id=f"o-{number}", wanted_after=after(599)) for number in numbers]
    await handler.handle([consumed(event, topic="order-events", offset=each) for each, event in enumerate(events)])


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that Kafka does not take makes a page too large to be read, too."""
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", SMALL_PAGES)


@pytest.fixture
def nothing_so_large_is_read(monkeypatch: pytest.MonkeyPatch, small_pages: None) -> None:
    """Nor is it read alone."""
    monkeypatch.setattr(client, "_MAX_SINGLE_BYTES", SMALL_PAGES)


@pytest.mark.parametrize("size", [TOO_LARGE_FOR_KAFKA, 50_000_000, 70_000_000], ids=["13 MB", "50 MB", "70 MB"])
async def test_a_look_at_an_order_that_is_too_large_is_given_up_and_the_others_are_stored(
    world: World, size: int
) -> None:
    await world.pool.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
        " SELECT 1, 'o-' || n, $1, now() + interval '1 hour' FROM generate_series(0, 11) n",
        after(599),
    )

    async with an_allegro(Seller(size), Noon()) as allegro:
        await _look_at(world, allegro, range(_ORDERS))

    assert await world.stored() == {f"o-{number}" for number in range(_ORDERS)} - {"o-1"}
    assert await world.pool.fetchval("SELECT count(*) FROM pending_fetches") == 0
    (letter,) = await world.letters()
    assert (letter["service"], letter["user_token_id"]) == ("enricher", 1)
    assert getattr(decode(letter["value"]), "order_id", None) == "o-1"
    assert "bytes" in letter["error"]


async def test_the_copy_that_we_hold_of_an_order_that_became_too_large_stays(world: World) -> None:
    async with an_allegro(Seller(1), Noon()) as allegro:
        await _look_at(world, allegro, range(_TOXIC, _TOXIC + 1))
    before = await world.pool.fetchrow("SELECT * FROM orders")

    async with an_allegro(Seller(TOO_LARGE_FOR_KAFKA), Noon()) as allegro:
        await _look_at(world, allegro, range(_TOXIC, _TOXIC + 1))

    assert await world.pool.fetchrow("SELECT * FROM orders") == before


async def test_a_dead_letter_that_was_too_large_has_its_order_looked_at_when_it_is_replayed(world: World) -> None:
    async with an_allegro(Seller(TOO_LARGE_FOR_KAFKA), Noon()) as allegro:
        await _look_at(world, allegro, range(_TOXIC, _TOXIC + 1))

    (letter,) = await world.letters()

    record = decode(letter["value"])
    assert isinstance(record, OrderFetch)
    assert (record.key, record.order_id) == (letter["key"], "o-1")
    assert (letter["partition"], letter["offset"]) == (-1, -1)


def _bulk(world: World, allegro: AllegroClient) -> BulkHandler:
    async def no_pause(_seconds: float) -> None:
        return

    results = Results(world.producer, world.settings.topics)
    return BulkHandler(allegro, results, world.pool, list_lag=LAG, walks=1, pause=no_pause)


WINDOW = OrderWindow(token_id=1, run_id=A_RUN, bought_from=after(-3600), bought_to=after(3600))


@pytest.mark.parametrize("limits", ["as_they_are", "small_pages"])
async def test_a_walk_goes_on_behind_an_order_that_is_too_large_and_its_run_ends(
    world: World, limits: str, request: pytest.FixtureRequest
) -> None:
    if limits == "small_pages":
        request.getfixturevalue(limits)
    await a_run(world.pool, attempt=0)

    async with an_allegro(Seller(TOO_LARGE_FOR_KAFKA), Noon()) as allegro:
        await _bulk(world, allegro).handle([consumed(WINDOW, topic="order-windows")])

    run = await world.pool.fetchrow("SELECT status, orders_processed, orders_added FROM sync_history")
    assert tuple(run) == ("completed", 12, 11)
    assert await world.stored() == {f"o-{number}" for number in range(_ORDERS)} - {"o-1"}
    (letter,) = await world.letters()
    assert "o-1" in letter["error"]


@pytest.mark.usefixtures("nothing_so_large_is_read")
async def test_a_walk_passes_over_an_order_that_is_too_large_to_be_read_and_says_so(world: World) -> None:
    await a_run(world.pool, attempt=0)

    async with an_allegro(Seller(TOO_LARGE_FOR_KAFKA), Noon()) as allegro:
        await _bulk(world, allegro).handle([consumed(WINDOW, topic="order-windows")])

    run = await world.pool.fetchrow("SELECT status, error FROM sync_history")
    assert (run["status"], "too large" in run["error"]) == ("stalled", True)
    assert await world.stored() == {f"o-{number}" for number in range(_ORDERS)} - {"o-1"}


@asynccontextmanager
async def _journal(world: World, seller: Callable[[int], Seller]) -> AsyncIterator[tuple[Seller, Callable[[], Any]]]:
    clock = DatabaseClock()
    await clock.synchronise(lambda: database_now(world.pool))
    await a_schedule(world.pool, 1)
    leases, slots = Leases(world.pool, seconds=60.0), Slots("journal", 50)
    chosen = seller(to_event_id(clock.now()))
    async with an_allegro(chosen, clock) as allegro:
        work = Work(world.producer, world.settings.topics)
        reader = PageReader(world.pool, allegro, work, tracked_event_types=())
        settings = SETTINGS.model_copy(update={"poller_max_pages": 20})
        poller = JournalPoller(world.pool, reader, work, clock, leases, slots, settings)

        async def turn() -> None:
            await world.pool.execute("UPDATE active_sync_schedules SET next_run = now() - interval '1 second'")
            await poller.turn()
            await slots.idle()

        yield chosen, turn


@pytest.mark.parametrize("limits", ["as_they_are", "small_pages"])
async def test_a_cursor_goes_on_over_an_event_that_is_too_large_and_its_order_is_owed_a_look(
    world: World, limits: str, request: pytest.FixtureRequest
) -> None:
    if limits == "small_pages":
        request.getfixturevalue(limits)

    async with _journal(world, lambda newest: Seller(TOO_LARGE_FOR_KAFKA, newest=newest)) as (seller, turn):
        await turn()

    assert await world.pool.fetchval("SELECT stored_event_id FROM journal_cursors") == seller.first_event + 11
    assert await world.pool.fetchval("SELECT count(*) FROM order_events") == 12
    assert await world.pool.fetchval("SELECT count(*) FROM pending_fetches") == 12
    row = await world.pool.fetchrow(
        "SELECT event_type, allegro_order_id, event_data FROM order_events WHERE event_id = $1",
        seller.first_event + _TOXIC,
    )
    assert (row["event_type"], row["allegro_order_id"]) == ("BOUGHT", "o-1")
    assert json.loads(row["event_data"])["ordersBackup"]["bytes"] >= TOO_LARGE_FOR_KAFKA
    (letter,) = await world.letters()
    assert (letter["service"], "o-1" in letter["error"]) == ("poller", True)
    assert await world.pool.fetchval("SELECT sum(events_stored) FROM sync_history") == 12


@pytest.mark.usefixtures("nothing_so_large_is_read")
async def test_an_event_that_is_too_large_to_be_read_is_a_clear_error(world: World) -> None:
    async with _journal(world, lambda newest: Seller(TOO_LARGE_FOR_KAFKA, newest=newest)) as (_, turn):
        await turn()

    error = await world.pool.fetchval("SELECT last_error FROM active_sync_schedules")
    assert f"larger than {SMALL_PAGES} bytes" in error


async def test_a_record_as_large_as_may_be_that_nobody_can_read_stops_no_lane(world: World) -> None:
    """With its cause, its dead letter is larger than may be."""
    results = Results(world.producer, world.settings.topics)
    record = consumed(bytes(MAX_RECORD_BYTES), topic="order-windows", offset=7)

    await results.dead_letter(record, ValueError("no record"))

    (letter,) = await world.letters()
    assert (letter["topic"], letter["offset"], letter["value"]) == ("order-windows", 7, None)
    assert f"value {MAX_RECORD_BYTES} bytes" in letter["error"]


async def test_the_largest_order_that_kafka_takes_comes_through(world: World) -> None:
    body = bytes(an_order_body())
    padded = body[:-1] + b',"padding":"' + b"x" * (MAX_RECORD_BYTES - 100_000) + b'"}'

    async with running(world.writer):
        await Results(world.raw_producer, world.settings.topics).results([an_observation(body=RawJson(padded))])
        await until(lambda: world.pool.fetchval("SELECT count(*) = 1 FROM orders"))

    assert await world.letters() == []
