"""The topic of states between a real PostgreSQL and a real broker: complete, and never backwards (D1, P1, P3)."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from prometheus_client import REGISTRY

from devstack.chaos.states import latest_states
from devstack.tansu import Tansu
from services.writer import order_state
from services.writer.batch import collect
from services.writer.metrics import Metrics
from services.writer.order_state import OrderStates, TopicMarker, publish_states
from services.writer.store import Store
from shared.database import open_pool
from shared.kafka import PublishFailedError, RecordProducer
from shared.kafka_batches import OutgoingRecord
from shared.messages import OrderMissing, OrderState, RawJson, Record, decode
from shared.order_state import republish_all
from shared.settings import KafkaSettings
from shared.topics import Topics, create_topics
from tests.builders import AN_ORDER, NOON, a_run, a_token, after, an_observation, an_order_body, consumed

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(kafka_bootstrap: str, fresh_topics: str) -> KafkaSettings:
    return KafkaSettings(kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=8)
    await a_token(pool)
    await pool.execute("UPDATE order_state_topic SET republish_after = NULL")  # the topic is as PostgreSQL believes
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


@pytest.fixture
def states(pool: asyncpg.Pool, producer: RecordProducer, settings: KafkaSettings, metrics: Metrics) -> OrderStates:
    return OrderStates(pool, producer, settings, metrics, settle_seconds=0)


class Interrupted(RecordProducer):
    """Does something between the reading of the states and their publication."""

    def __init__(self, settings: KafkaSettings, before: Callable[[], Awaitable[None]]) -> None:
        super().__init__(settings, service="test")
        self._before = before

    async def publish_all(self, topic: str, records: Iterable[OutgoingRecord]) -> None:
        await self._before()
        await super().publish_all(topic, records)


class Weighed(RecordProducer):
    """Tells which orders were published together, and how many bytes they came to."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__(settings, service="test")
        self.together: list[list[str]] = []
        self.bytes: list[int] = []

    async def publish_all(self, topic: str, records: Iterable[OutgoingRecord]) -> None:
        records = list(records)
        self.together.append([(key or b"").decode() for key, _, _ in records])
        self.bytes.append(sum(len(value or b"") for _, value, _ in records))
        await super().publish_all(topic, records)


async def store(pool: asyncpg.Pool, *records: Record) -> None:
    await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead-letters"))


async def publish_everything(states: OrderStates) -> None:
    while await states.turn():
        pass


async def recreate(settings: KafkaSettings) -> None:
    """The topic of states is deleted, and created again empty."""
    admin = AIOKafkaAdminClient(bootstrap_servers=list(settings.kafka_bootstrap_servers))
    await admin.start()
    try:
        await admin.delete_topics([settings.topics.order_state])
        async with asyncio.timeout(30):
            while settings.topics.order_state in await admin.list_topics():  # noqa: ASYNC110 - the broker's own time
                await asyncio.sleep(0.05)
    finally:
        await admin.close()
    await create_topics(settings.kafka_bootstrap_servers, settings.topics, partitions=3, replication_factor=1)


async def published(settings: KafkaSettings, *, until: int) -> list[tuple[str, OrderState]]:
    """The first records of the topic, by key; those of one key are in the topic's order."""
    found: list[tuple[str, OrderState]] = []
    async with (
        asyncio.timeout(30),
        AIOKafkaConsumer(
            bootstrap_servers=list(settings.kafka_bootstrap_servers), auto_offset_reset="earliest"
        ) as reader,
    ):
        reader.assign([TopicPartition(settings.topics.order_state, number) for number in range(3)])
        while len(found) < until:
            for records in (await reader.getmany(timeout_ms=200)).values():
                for record in records:
                    state = decode(record.value)
                    assert isinstance(state, OrderState)
                    found.append((record.key.decode(), state))
    return found


def count(metrics: Metrics) -> int:
    """States published."""
    [published] = metrics.order_states.collect()
    return int(published.samples[0].value)


def order_ids(number: int) -> list[str]:
    return [f"{index:08d}-c4e8-11f1-904f-89bb34047197" for index in range(number)]


async def test_a_changed_order_is_published_once_under_its_own_id(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings, metrics: Metrics
) -> None:
    await store(pool, an_observation(futureField={"a": [1.50, None, "ł"]}))
    await publish_everything(states)
    await store(pool, an_observation(after(10), futureField={"a": [1.50, None, "ł"]}))  # equal content
    await publish_everything(states)
    await store(pool, an_observation(after(20), status="CANCELLED"))
    await publish_everything(states)

    first, second = await published(settings, until=2)

    assert (first[0], first[1].order_id, first[1].observed_at) == (AN_ORDER, AN_ORDER, NOON)
    assert json.loads(first[1].order) == json.loads(an_order_body(futureField={"a": [1.50, None, "ł"]}))
    assert (second[0], json.loads(second[1].order)["status"]) == (AN_ORDER, "CANCELLED")
    latest = await latest_states(settings.kafka_bootstrap_servers[0], settings.topics.order_state)
    assert {key: state["order"]["status"] for key, state in latest.items()} == {AN_ORDER: "CANCELLED"}
    assert count(metrics) == 2
    assert await pool.fetchval("SELECT count(*) FROM order_state_outbox") == 0


async def test_an_order_that_allegro_no_longer_has_keeps_its_state_with_the_mark(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings
) -> None:
    await store(pool, an_observation())
    await publish_everything(states)
    await store(pool, OrderMissing(token_id=1, order_id=AN_ORDER, observed_at=after(60), reason="404: not found"))
    await publish_everything(states)

    _, (_, gone) = await published(settings, until=2)

    assert (gone.gone_at, gone.gone_reason) == (after(60), "404: not found")
    assert json.loads(gone.order) == json.loads(an_order_body())


async def test_bytes_that_jsonb_cannot_hold_are_published_as_they_came(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings
) -> None:
    exact = an_order_body(note="a\0b")
    await store(pool, an_observation())
    await pool.execute("UPDATE orders SET order_raw = $1", bytes(exact))
    await publish_everything(states)

    [(_, state)] = await published(settings, until=1)

    assert state.order == RawJson(exact)


async def test_the_topic_is_created_compacted(settings: KafkaSettings) -> None:
    topics = settings.topics
    admin = AIOKafkaAdminClient(bootstrap_servers=list(settings.kafka_bootstrap_servers))
    await admin.start()
    try:
        policies = {}
        for name in (topics.order_state, topics.orders):
            [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
            entries = {entry[0]: entry[1] for entry in answer.resources[0][4]}
            policies[name] = entries.get("cleanup.policy", "delete")
    finally:
        await admin.close()

    assert policies == {topics.order_state: "compact", topics.orders: "delete"}


async def test_a_replica_that_is_stopped_publishes_nothing_behind_what_another_has_published_since(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings, metrics: Metrics
) -> None:
    """It holds the lock until what it had begun is there, and takes the note away."""
    has_read, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        has_read.set()
        await may_go_on.wait()

    await store(pool, an_observation(status="BOUGHT"))
    async with Interrupted(settings, wait) as slow:
        stopped = asyncio.create_task(OrderStates(pool, slow, settings, metrics, settle_seconds=0).turn())
        await has_read.wait()
        await store(pool, an_observation(after(10), status="CANCELLED"))
        stopped.cancel()
        other = asyncio.create_task(publish_everything(states))
        await asyncio.wait([other], timeout=0.5)
        had_to_wait = not other.done()
        may_go_on.set()
        await other
        with pytest.raises(asyncio.CancelledError):
            await stopped

    statuses = [json.loads(state.order)["status"] for _, state in await published(settings, until=2)]
    assert had_to_wait
    assert statuses == ["BOUGHT", "CANCELLED"]
    assert await pool.fetchval("SELECT count(*) FROM order_state_outbox") == 0


async def test_a_topic_that_was_lost_is_filled_again_in_batches(
    pool: asyncpg.Pool,
    states: OrderStates,
    settings: KafkaSettings,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_state, "BATCH_ORDERS", 10)
    await states.check_topic()
    await store(pool, *(an_observation(order_id=order_id) for order_id in order_ids(45)))
    await publish_everything(states)
    await states.check_topic()
    await publish_everything(states)
    filled_once = count(metrics)

    await recreate(settings)
    await states.check_topic()
    await publish_everything(states)

    assert filled_once <= 2 * 45  # once for the notes, once because the topic was new
    assert {key for key, _ in await published(settings, until=45)} == set(order_ids(45))
    assert count(metrics) == filled_once + 45


@pytest.mark.parametrize("what", ["changed", "published again", "both"])
async def test_a_turn_holds_few_large_orders_however_small_they_are_stored(
    pool: asyncpg.Pool, settings: KafkaSettings, metrics: Metrics, what: str
) -> None:
    """Promise P10: forty orders of 1 MB, which PostgreSQL compresses to half a megabyte together."""
    a_megabyte, ids = 1_000_000, order_ids(40)
    await store(pool, *(an_observation(order_id=key, note="x" * a_megabyte) for key in ids))
    stored = await pool.fetchval("SELECT sum(pg_column_size(order_data)) FROM orders")
    if what != "changed":
        await republish_all(pool)
    if what == "published again":
        await pool.execute("DELETE FROM order_state_outbox")

    async with Weighed(settings) as producer:
        await publish_everything(OrderStates(pool, producer, settings, metrics, settle_seconds=0))

    times = 2 if what == "both" else 1
    assert stored < a_megabyte
    assert max(producer.bytes) < order_state.BATCH_BYTES + times * 1.01 * a_megabyte
    assert len(producer.bytes) == (9 if what == "both" else 5), "no turn holds less than it may"
    assert Counter(key for part in producer.together for key in part) == dict.fromkeys(ids, times)
    assert {key for key, _ in await published(settings, until=times * len(ids))} == set(ids)
    assert await pool.fetchval("SELECT count(*) FROM order_state_outbox") == 0
    assert await pool.fetchval("SELECT republish_after FROM order_state_topic") is None


async def test_orders_that_are_each_too_much_for_a_turn_go_out_singly_the_longest_waiting_first(
    pool: asyncpg.Pool, settings: KafkaSettings, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_state, "BATCH_BYTES", 1)
    first, second, third = order_ids(3)
    for key in (third, first, second):
        await store(pool, an_observation(order_id=key))
    waiting = []

    async with Weighed(settings) as producer:
        states = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
        while await states.turn():
            waiting.append(
                await pool.fetchval("SELECT array_agg(allegro_order_id ORDER BY id) FROM order_state_outbox")
            )
            if len(waiting) == 1:
                await store(pool, an_observation(after(10), order_id=second, status="CANCELLED"))

    assert producer.together == [[third], [first], [second]]
    assert waiting == [[first, second], [second, second]]
    statuses = {key: json.loads(state.order)["status"] for key, state in await published(settings, until=3)}
    assert statuses[second] == "CANCELLED"


async def test_ordinary_orders_go_out_five_hundred_at_a_time(
    pool: asyncpg.Pool, settings: KafkaSettings, metrics: Metrics
) -> None:
    """As many again of those that are published anew."""
    chance = random.Random(7)
    await store(pool, *(an_observation(order_id=key, note=chance.randbytes(1300).hex()) for key in order_ids(1100)))
    await republish_all(pool)

    async with Weighed(settings) as producer:
        await publish_everything(OrderStates(pool, producer, settings, metrics, settle_seconds=0))

    assert [len(part) for part in producer.together] == [1000, 1000, 200]
    assert sum(producer.bytes) > 2200 * 3000


async def test_a_broker_that_lost_all_its_data_gets_every_state_again(
    pool: asyncpg.Pool, metrics: Metrics, tmp_path: Path
) -> None:
    """The last state was published before the loss, and nothing changed since: no note tells of it."""
    broker = Tansu(tmp_path)
    broker.start()
    try:
        settings = KafkaSettings(kafka_bootstrap_servers=(broker.bootstrap_servers,))
        topics = Topics()
        await create_topics(settings.kafka_bootstrap_servers, topics, partitions=3, replication_factor=1)
        async with RecordProducer(settings, service="test") as producer:
            states = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
            await states.check_topic()
            await store(pool, *(an_observation(order_id=order_id) for order_id in order_ids(5)))
            await publish_everything(states)

        broker.kill()
        broker.start()
        await create_topics(settings.kafka_bootstrap_servers, topics, partitions=3, replication_factor=1)
        async with RecordProducer(settings, service="test") as producer:
            states = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
            await states.check_topic()
            await publish_everything(states)
            found = await published(settings, until=5)
    finally:
        broker.stop()

    assert {key for key, _ in found} == set(order_ids(5))


async def produce_before_it_exists(broker: Tansu, topic: str, keys: Sequence[str]) -> None:
    """As a producer whose metadata is older than the broker."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for offset, key in enumerate(keys):
        builder.append(offset, timestamp=None, key=key.encode(), value=b'{"kind":"old"}', headers=[])
    client = AIOKafkaClient(bootstrap_servers=broker.bootstrap_servers)
    await client.bootstrap()
    records = [(topic, [(0, bytes(builder.build()))])]
    answer = await client.send(client.get_random_node(), ProduceRequest(None, -1, 10_000, records))
    await client.close()
    assert answer.topics[0][1][0][1] == 0, "taken"


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "a new one after each failure"])
@pytest.mark.parametrize("taken", [20, 30], ids=["some taken before", "more than all orders taken before"])
async def test_a_torn_topic_shows_the_latest_state_of_every_order(
    pool: asyncpg.Pool, metrics: Metrics, tmp_path: Path, restarts: bool, taken: int
) -> None:
    """Records of before the topic was created hide those that come next (Tansu 0.6)."""
    broker, topics = Tansu(tmp_path), Topics()
    with broker:
        settings = KafkaSettings(kafka_bootstrap_servers=(broker.bootstrap_servers,))
        await produce_before_it_exists(broker, topics.order_state, [f"key {number}" for number in range(taken)])
        await create_topics(settings.kafka_bootstrap_servers, topics, partitions=1, replication_factor=1)
        await store(pool, *(an_observation(order_id=order_id) for order_id in order_ids(12)))
        async with RecordProducer(settings, service="test") as producer:
            states = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
            failures = 0
            for _ in range(10):
                try:
                    await publish_everything(states)
                except PublishFailedError:
                    failures += 1
                    if restarts:
                        states = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
            latest = await latest_states(broker.bootstrap_servers, topics.order_state)

    assert failures, "Tansu is mended: `OrderStates` needs no second publication any more"
    assert set(order_ids(12)) <= latest.keys()


async def test_what_was_lost_with_kafka_is_due_at_once(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings
) -> None:
    """Not looks that failed: they wait for their next attempt in the table, not in Kafka."""
    await states.check_topic()
    await a_run(pool, token_id=await pool.fetchval("SELECT id FROM user_tokens"))
    await pool.execute("UPDATE run_windows SET progress_at = now() - interval '1 hour', published_at = now()")
    is_due = "SELECT published_at = progress_at FROM run_windows"
    await pool.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, attempts, next_attempt_at)"
        " SELECT id, 'o-' || n, now(), n, now() + interval '1 hour' FROM user_tokens, generate_series(0, 1) AS n"
    )
    due = "SELECT allegro_order_id FROM pending_fetches WHERE next_attempt_at <= now()"
    await states.check_topic()
    assert (await pool.fetch(due), await pool.fetchval(is_due)) == ([], False)

    await recreate(settings)
    await states.check_topic()

    assert [row[0] for row in await pool.fetch(due)] == ["o-0"]
    assert await pool.fetchval(is_due)


async def test_the_marker_is_renewed_long_before_kafka_forgets_it(
    pool: asyncpg.Pool,
    producer: RecordProducer,
    settings: KafkaSettings,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[int] = []

    async def note(_marker: TopicMarker, generation: int) -> None:
        written.append(generation)

    hours = 0.0
    states = OrderStates(pool, producer, settings, metrics, monotonic=lambda: hours * 3600, settle_seconds=0)
    await states.check_topic()
    generation = await TopicMarker(settings).read()
    monkeypatch.setattr(TopicMarker, "write", note)
    for hours in (5, 7, 8, 14):  # noqa: B007 - the clock reads it
        await states.check_topic()

    assert written == [generation, generation]


async def test_a_new_topic_is_filled_some_seconds_after_it_was_first_seen(
    pool: asyncpg.Pool, settings: KafkaSettings, producer: RecordProducer, metrics: Metrics
) -> None:
    """It may still be about to be created, and hide what it is given by then."""
    seconds = 0.0
    states = OrderStates(pool, producer, settings, metrics, monotonic=lambda: seconds)
    found = []
    await states.check_topic()
    found.append(await pool.fetchval("SELECT generation FROM order_state_topic"))  # the first one of all: at once
    await TopicMarker(settings).write(41)
    for seconds in (15, 17, 20):  # noqa: B007 - the clock reads it
        await states.check_topic()
        found.append(await pool.fetchval("SELECT generation FROM order_state_topic"))

    assert found == [1, 1, 1, 42]


async def test_a_marker_without_its_generation_fills_the_topic_again(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings
) -> None:
    """PostgreSQL came back from a backup, or the process died between the two: they differ, whichever is older."""
    await states.check_topic()
    await publish_everything(states)
    await TopicMarker(settings).write(41)

    await states.check_topic()

    assert tuple(await pool.fetchrow("SELECT generation, republish_after FROM order_state_topic")) == (42, 0)
    assert await TopicMarker(settings).read() == 42


async def test_everything_is_published_again_on_demand_also_in_the_middle_of_it(
    pool: asyncpg.Pool,
    states: OrderStates,
    settings: KafkaSettings,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_state, "BATCH_ORDERS", 10)
    await store(pool, *(an_observation(order_id=order_id) for order_id in order_ids(25)))
    await publish_everything(states)
    before = count(metrics)

    await republish_all(pool)
    await states.turn()
    await republish_all(pool)
    await publish_everything(states)

    assert count(metrics) == before + 10 + 25


async def test_what_kafka_did_not_take_is_published_later(
    pool: asyncpg.Pool, settings: KafkaSettings, metrics: Metrics
) -> None:
    async def away() -> None:
        if not attempts:
            attempts.append(1)
            raise PublishFailedError("not acknowledged")

    attempts: list[int] = []
    await store(pool, an_observation())
    async with Interrupted(settings, away) as producer:
        states = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
        with pytest.raises(PublishFailedError):
            await states.turn()
        waiting = await pool.fetchval("SELECT count(*) FROM order_state_outbox")

        await publish_everything(states)

    assert waiting == 1
    assert [key for key, _ in await published(settings, until=1)] == [AN_ORDER]


async def test_a_publication_that_arrives_after_a_newer_one_is_followed_by_the_newest(
    pool: asyncpg.Pool, states: OrderStates, settings: KafkaSettings, metrics: Metrics
) -> None:
    """A replica hangs between reading and publishing, loses its connection, and goes on: the other was quicker."""

    async def overtaken() -> None:
        if not hung:
            hung.append(1)
            await pool.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
            await store(pool, an_observation(after(60), status="CANCELLED"))
            await publish_everything(states)

    hung: list[int] = []
    await store(pool, an_observation())
    async with Interrupted(settings, overtaken) as producer:
        late = OrderStates(pool, producer, settings, metrics, settle_seconds=0)
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
            await late.turn()

        await publish_everything(late)

    times = [state.observed_at for _, state in await published(settings, until=3)]
    assert times == [after(60), NOON, after(60)]


async def test_replicas_that_come_and_go_never_publish_an_older_state_after_a_newer_one(
    pool: asyncpg.Pool, producer: RecordProducer, settings: KafkaSettings, metrics: Metrics
) -> None:
    """Orders change all the time while three replicas publish, each cut off in the middle now and then."""
    ids = order_ids(20)
    chance = random.Random(7)
    changing = asyncio.Event()
    changing.set()

    async def change() -> None:
        for second in range(60):
            chosen = chance.sample(ids, 8)
            await store(pool, *(an_observation(after(second), order_id=key, revision=str(second)) for key in chosen))
        changing.clear()

    async def replica() -> None:
        while changing.is_set():
            turn = asyncio.ensure_future(OrderStates(pool, producer, settings, metrics, settle_seconds=0).turn())
            await asyncio.wait([turn], timeout=chance.uniform(0.005, 0.05))
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)

    await asyncio.gather(change(), *(replica() for _ in range(3)))
    await publish_everything(OrderStates(pool, producer, settings, metrics, settle_seconds=0))

    stored = dict(await pool.fetch("SELECT allegro_order_id, observed_at FROM orders"))
    shown = await until_all(settings, stored)
    for times in shown.values():
        assert list(times) == sorted(times)


async def until_all(settings: KafkaSettings, stored: dict[str, datetime]) -> dict[str, Sequence[datetime]]:
    """The times of the states by order, once the last of each is the stored one."""
    shown: defaultdict[str, list[datetime]] = defaultdict(list)
    async with (
        asyncio.timeout(30),
        AIOKafkaConsumer(
            bootstrap_servers=list(settings.kafka_bootstrap_servers), auto_offset_reset="earliest"
        ) as reader,
    ):
        reader.assign([TopicPartition(settings.topics.order_state, number) for number in range(3)])
        while {key: times[-1] for key, times in shown.items()} != stored:
            for records in (await reader.getmany(timeout_ms=200)).values():
                for record in records:
                    shown[record.key.decode()].append(decode(record.value).observed_at)  # type: ignore[union-attr]
    return dict(shown)


@pytest.mark.parametrize(
    ("more", "behind", "at_once"), [(True, False, True), (True, True, False), (False, False, False)]
)
async def test_what_waits_to_be_stored_comes_before_the_next_batch_of_states(
    more: bool, behind: bool, at_once: bool
) -> None:
    class States:
        async def turn(self) -> bool:
            return more

    class Busy:
        is_behind = behind

    assert await publish_states(States(), Busy()) is at_once
