"""Lanes on a real broker: order within a token, no waiting between tokens, nothing skipped (promises P1, P4)."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from services.enricher.lanes import Handler, Lanes, Ownership
from shared.delivery import open_consumer
from shared.errors import TransientError
from shared.settings import KafkaSettings
from shared.topics import Topics

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(kafka_bootstrap: str, fresh_topics: str) -> KafkaSettings:
    return KafkaSettings(
        kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics, kafka_session_timeout_seconds=6
    )


@pytest.fixture
def topic(fresh_topics: str) -> str:
    return Topics(fresh_topics).order_events


async def publish(settings: KafkaSettings, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=list(settings.kafka_bootstrap_servers))
    await producer.start()
    try:
        for key, value in records:
            await producer.send(topic, key=key, value=value)
        await producer.flush()
    finally:
        await producer.stop()


def consumer(settings: KafkaSettings) -> AIOKafkaConsumer:
    return open_consumer(settings, group="lanes", service="test", max_poll_interval_ms=60_000)


@asynccontextmanager
async def running(settings: KafkaSettings, topic: str, handler: Handler) -> AsyncIterator[Lanes]:
    lanes = Lanes(lambda: consumer(settings), topic, handler, max_batch=10, drain_seconds=1.0, progressed=lambda: None)
    task = asyncio.create_task(lanes.run())
    try:
        yield lanes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def committed(settings: KafkaSettings, topic: str) -> int:
    """Sum of the committed offsets of the group."""
    reader = consumer(settings)
    await reader.start()
    try:
        offsets = [await reader.committed(TopicPartition(topic, number)) for number in range(3)]
    finally:
        await reader.stop()
    return sum(offset or 0 for offset in offsets)


async def test_a_slow_token_delays_no_other_and_each_token_keeps_its_order(settings: KafkaSettings, topic: str) -> None:
    seen: defaultdict[bytes, list[bytes]] = defaultdict(list)
    release = asyncio.Event()
    others_done = asyncio.Event()

    async def handler(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if record.key == b"slow":
                await release.wait()
            seen[record.key].append(record.value)
        if sum(len(values) for key, values in seen.items() if key != b"slow") == 50 * 20:
            others_done.set()

    numbers = [b"%03d" % number for number in range(20)]
    await publish(settings, topic, [(b"slow", number) for number in numbers])
    await publish(settings, topic, [(b"%d" % token, number) for number in numbers for token in range(50)])
    async with running(settings, topic, handler):
        await asyncio.wait_for(others_done.wait(), 60)
        slow_before = len(seen[b"slow"])
        release.set()

    assert slow_before == 0
    assert all(values == numbers for key, values in seen.items() if key != b"slow")


async def test_what_is_not_done_is_not_committed_and_comes_again(settings: KafkaSettings, topic: str) -> None:
    stuck = asyncio.Event()
    first: list[bytes] = []
    again: list[bytes] = []
    all_again = asyncio.Event()

    async def hang_in_the_middle(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            if record.value == b"3":
                stuck.set()
                await asyncio.Event().wait()
            first.append(record.value)

    async def take(records: Sequence[ConsumerRecord]) -> None:
        again.extend(record.value for record in records)
        if again[-1] == b"5":
            all_again.set()

    await publish(settings, topic, [(b"1", b"%d" % number) for number in range(6)])
    async with running(settings, topic, hang_in_the_middle):
        await asyncio.wait_for(stuck.wait(), 60)
    async with running(settings, topic, take):
        await asyncio.wait_for(all_again.wait(), 60)

    assert b"3" in again
    assert set(first) | set(again) == {b"%d" % number for number in range(6)}
    assert await committed(settings, topic) == 6


async def test_a_transient_failure_is_tried_again_in_place(settings: KafkaSettings, topic: str) -> None:
    attempts = 0
    done = asyncio.Event()

    async def fail_twice(_records: Sequence[ConsumerRecord]) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise TransientError("not yet")
        done.set()

    await publish(settings, topic, [(b"1", b"x")])
    async with running(settings, topic, fail_twice):
        await asyncio.wait_for(done.wait(), 60)

    assert attempts == 3
    assert await committed(settings, topic) == 1


async def test_a_rebalance_with_work_in_hand_loses_nothing(settings: KafkaSettings, topic: str) -> None:
    seen: defaultdict[bytes, list[bytes]] = defaultdict(list)
    wanted = {(b"%d" % token, b"%03d" % number) for token in range(20) for number in range(30)}
    complete = asyncio.Event()

    async def handler(records: Sequence[ConsumerRecord]) -> None:
        await asyncio.sleep(0.002 * len(records))
        for record in records:
            seen[record.key].append(record.value)
        if {(key, value) for key, values in seen.items() for value in values} == wanted:
            complete.set()

    await publish(settings, topic, sorted(wanted, key=lambda pair: (pair[1], pair[0])))
    async with running(settings, topic, handler):
        async with running(settings, topic, handler):
            await asyncio.sleep(0)
        await asyncio.wait_for(complete.wait(), 90)

    assert await committed(settings, topic) == len(wanted)
    for values in seen.values():
        first_time = list(dict.fromkeys(values))
        assert first_time == sorted(first_time)


def test_the_low_water_mark_waits_for_the_first_unfinished_record() -> None:
    ownership = Ownership()
    for offset in (5, 6, 9):
        ownership.add(offset)

    ownership.finish([9, 6])
    before = ownership.committable
    ownership.finish([5])

    assert before is None
    assert (ownership.committable, ownership.unfinished) == (10, 0)
