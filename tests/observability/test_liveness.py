"""Alive means that it makes progress: a hung consumer turns red though its process answers; an idle one stays green."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer
from prometheus_client import REGISTRY

from devstack.brokers import Broker, choose_broker
from devstack.ports import free_port, release
from services.enricher.lanes import Lanes, Work
from services.writer.consume import Writer
from services.writer.metrics import Metrics
from services.writer.store import Store, Written
from shared.delivery import open_consumer, poll
from shared.health import Health
from shared.kafka import RecordProducer
from shared.kafka_batches import OutgoingRecord
from shared.service import BackgroundLoops
from shared.settings import KafkaSettings
from shared.topics import create_topics
from tests.builders import an_observation

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

_WITHIN_SECONDS = 30.0
_BATCH_RECORDS = 2


class InterruptedRoundError(ConnectionError):
    """What ends the first round of the consumer."""


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock)


@pytest.fixture
async def loops(health: Health) -> AsyncIterator[BackgroundLoops]:
    async with BackgroundLoops(health, stop_seconds=10) as opened:
        yield opened


async def turns(health: Health, *, red: bool) -> None:
    """Wait until liveness is what it should be."""
    async with asyncio.timeout(90):
        while health.liveness().good is red:  # noqa: ASYNC110 - the loop tells nobody but `health`
            await asyncio.sleep(0.01)


@pytest.fixture
def settings(kafka_bootstrap: str, fresh_topics: str) -> KafkaSettings:
    return KafkaSettings(
        kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics, kafka_session_timeout_seconds=6
    )


@pytest.fixture
def lanes(settings: KafkaSettings, health: Health) -> Lanes:
    """A consumer without a single record to consume."""
    return idle_lanes(settings, health)


def idle_lanes(settings: KafkaSettings, health: Health, *, progressed: Callable[[], None] | None = None) -> Lanes:
    async def nothing_comes(_records: object) -> None:
        raise AssertionError("a record came")

    return Lanes(
        partial(open_consumer, settings, group="idle", service="test", max_poll_interval_ms=60_000),
        {settings.topics.order_events: Work(nothing_comes, max_batch=10, drain_seconds=1)},
        progressed=progressed or partial(health.progressed, "consume"),
    )


class HangingStore:
    """Takes a batch and never comes back."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def apply(self, *_batch: object, **_storable: object) -> Written:
        self.began.set()
        await asyncio.Event().wait()
        return Written()


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics()
    yield made
    for collector in vars(made).values():
        REGISTRY.unregister(collector)


@pytest.fixture
async def producer(settings: KafkaSettings) -> AsyncIterator[RecordProducer]:
    async with RecordProducer(settings, service="test") as opened:
        yield opened


@pytest.fixture
def store() -> HangingStore:
    return HangingStore()


@pytest.fixture
def writer(
    settings: KafkaSettings, health: Health, producer: RecordProducer, metrics: Metrics, store: HangingStore
) -> Writer:
    return Writer(
        partial(open_consumer, settings, group="hanging", service="test", max_poll_interval_ms=60_000),
        cast(Store, store),
        producer,
        settings.topics,
        metrics,
        max_records=_BATCH_RECORDS,
        progressed=partial(health.progressed, "consume"),
        stored=lambda: None,
    )


async def test_an_idle_writer_stays_alive(loops: BackgroundLoops, health: Health, clock: Clock, writer: Writer) -> None:
    loops.keep_running("consume", writer.run, within_seconds=_WITHIN_SECONDS)
    for _ in range(3):
        clock.seconds += 10 * _WITHIN_SECONDS

        await turns(health, red=False)

    assert health.liveness().good


async def test_a_writer_whose_batch_never_ends_is_dead_although_it_polls_on(
    loops: BackgroundLoops,
    health: Health,
    clock: Clock,
    writer: Writer,
    producer: RecordProducer,
    settings: KafkaSettings,
    store: HangingStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    polls = 0

    async def counted(*arguments: Any, **others: Any) -> Any:
        nonlocal polls
        polled = await poll(*arguments, **others)
        polls += 1
        return polled

    monkeypatch.setattr("services.writer.consume.poll", counted)
    record = an_observation()
    # One more than a batch takes: it is taken while the batch is stored, and more is looked for.
    sent: list[OutgoingRecord] = [(record.key, record.encode(), [])] * (_BATCH_RECORDS + 1)
    await producer.publish_all(settings.topics.orders, sent)
    loops.keep_running("consume", writer.run, within_seconds=_WITHIN_SECONDS)
    async with asyncio.timeout(60):
        await store.began.wait()

    clock.seconds += 10 * _WITHIN_SECONDS
    polled_before = polls
    async with asyncio.timeout(60):
        while polls < polled_before + 10:  # noqa: ASYNC110 - the writer tells nobody
            await asyncio.sleep(0.01)

    assert list(health.liveness().wrong) == ["consume"]


async def test_an_idle_consumer_stays_alive(loops: BackgroundLoops, health: Health, clock: Clock, lanes: Lanes) -> None:
    loops.keep_running("consume", lanes.run, within_seconds=_WITHIN_SECONDS)
    for _ in range(3):
        clock.seconds += 10 * _WITHIN_SECONDS

        await turns(health, red=False)

    assert health.liveness().good


async def test_a_hung_consumer_is_dead_although_its_process_answers(
    loops: BackgroundLoops, health: Health, clock: Clock, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops.keep_running("consume", lanes.run, within_seconds=_WITHIN_SECONDS)
    clock.seconds += 10 * _WITHIN_SECONDS
    await turns(health, red=False)
    hung = asyncio.Event()

    async def never(_consumer: object) -> None:
        hung.set()
        await asyncio.Event().wait()

    def interrupt(_consumer: object) -> None:
        raise InterruptedRoundError

    # The round in hand ends by an outage; the next one hangs.
    monkeypatch.setattr(lanes, "_hold_back", interrupt)
    monkeypatch.setattr(lanes, "_take", never)
    async with asyncio.timeout(60):
        await hung.wait()
    clock.seconds += 10 * _WITHIN_SECONDS

    answer = health.liveness().response()
    ready = await health.readiness()

    assert answer.status_code == 503
    assert list(json.loads(answer.body)["wrong"]) == ["consume"]
    assert "consume" in ready.wrong


async def test_a_loop_of_rounds_that_has_nothing_to_do_stays_alive_and_a_hung_one_does_not(
    loops: BackgroundLoops, health: Health, clock: Clock
) -> None:
    hang = asyncio.Event()
    began = asyncio.Event()

    async def work() -> bool:
        if hang.is_set():
            began.set()
            await asyncio.Event().wait()
        return False

    loops.run_every("rounds", 0.01, work, within_seconds=_WITHIN_SECONDS)
    clock.seconds += 10 * _WITHIN_SECONDS
    await turns(health, red=False)
    idle = health.liveness().good

    hang.set()
    async with asyncio.timeout(10):
        await began.wait()
    clock.seconds += 10 * _WITHIN_SECONDS

    assert idle
    assert list(health.liveness().wrong) == ["rounds"]


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that may go away."""
    port = free_port()
    broker = choose_broker({"KAFKA": os.environ.get("KAFKA", "")}, tmp_path / "broker", port=port)
    broker.start()
    yield broker
    broker.stop()
    release(port)


async def test_a_consumer_whose_broker_is_away_stays_alive(
    own_broker: Broker, health: Health, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.delivery._LONGEST_POLL_SECONDS", 5.0)
    settings = KafkaSettings(kafka_bootstrap_servers=(own_broker.bootstrap_servers,), kafka_session_timeout_seconds=6)
    await create_topics(settings.kafka_bootstrap_servers, settings.topics, partitions=3, replication_factor=1)
    async with BackgroundLoops(health, stop_seconds=10) as loops:
        loops.keep_running("consume", idle_lanes(settings, health).run, within_seconds=_WITHIN_SECONDS)
        clock.seconds += 10 * _WITHIN_SECONDS
        await turns(health, red=False)

        await asyncio.to_thread(own_broker.kill)
        for _ in range(3):
            clock.seconds += 10 * _WITHIN_SECONDS

            await turns(health, red=False)

    assert health.liveness().good


async def test_a_consumer_that_never_gets_its_first_partitions_makes_way_for_a_new_one(
    settings: KafkaSettings, health: Health, loops: BackgroundLoops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that does not form, as after members were killed in the middle of it: aiokafka waits without end."""
    monkeypatch.setattr("shared.delivery._LONGEST_POLL_SECONDS", 5.0)
    starts = 0
    in_earnest = AIOKafkaConsumer.start

    async def first_without_end(consumer: AIOKafkaConsumer) -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            await asyncio.Event().wait()
        await in_earnest(consumer)

    monkeypatch.setattr(AIOKafkaConsumer, "start", first_without_end)
    polled = asyncio.Event()
    lanes = idle_lanes(settings, health, progressed=polled.set)
    loops.keep_running("consume", lanes.run, within_seconds=_WITHIN_SECONDS)

    async with asyncio.timeout(60):
        await polled.wait()

    assert starts >= 2
