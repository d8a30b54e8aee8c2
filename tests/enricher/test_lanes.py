"""Lanes on a real broker: order within a token, no waiting between tokens, nothing skipped (promises P1, P4)."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from services.enricher.lanes import Handler, LaneKey, Lanes, Owed, Ownership, Work
from shared.delivery import GroupConsumer, open_consumer
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


def consumer(settings: KafkaSettings) -> GroupConsumer:
    return open_consumer(settings, group="lanes", service="test", max_poll_interval_ms=60_000)


@asynccontextmanager
async def running(
    settings: KafkaSettings, topic: str, handler: Handler, owed: Owed | None = None
) -> AsyncIterator[Lanes]:
    lanes = Lanes(lambda: consumer(settings), {topic: Work(handler, 10, 1.0, owed)}, progressed=lambda: None)
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


async def test_a_stuck_record_and_thousands_of_finished_ones_behind_it_stop_no_other_token(
    settings: KafkaSettings, topic: str
) -> None:
    release = asyncio.Event()
    seen = 0
    late = asyncio.Event()

    async def handler(records: Sequence[ConsumerRecord]) -> None:
        nonlocal seen
        if records[0].key == b"stuck":
            await release.wait()
        seen += len(records)
        if any(record.value == b"late" for record in records):
            late.set()

    await publish(settings, topic, [(b"stuck", b"x")])
    partition = await partition_of(settings, topic, b"stuck")
    others = [key for key in await keys_on(settings, topic, partition) if key != b"stuck"]
    await publish(settings, topic, [(others[number % len(others)], b"x") for number in range(5000)])
    await publish(settings, topic, [(others[0], b"late")])
    async with running(settings, topic, handler) as lanes:
        await asyncio.wait_for(late.wait(), 60)
        in_hand = sum(lanes.unfinished.values())
        committed_before = await committed(settings, topic)
        release.set()

    assert seen >= 5001
    assert in_hand <= 20
    assert committed_before == 0
    assert await committed(settings, topic) == 5002


async def test_a_seller_with_thousands_of_waiting_records_keeps_another_of_its_partition_waiting_for_none_of_them(
    settings: KafkaSettings, topic: str
) -> None:
    """What finds no room is read from the database, at the seller's own pace, and none of it is left out."""
    release = asyncio.Event()
    single = asyncio.Event()
    looked_at: set[bytes] = set()
    all_seen = asyncio.Event()
    wanted = [b"%05d" % number for number in range(6000)]

    async def handler(records: Sequence[ConsumerRecord]) -> None:
        if records[0].key != b"long":
            single.set()
            return
        await release.wait()
        looked_at.update(record.value for record in records)
        if looked_at == set(wanted):
            all_seen.set()

    async def owed(lane: LaneKey, after: int | None, lanes: int) -> tuple[Sequence[ConsumerRecord], int]:
        place = after or 0
        values = [value for value in wanted if value not in looked_at][:100]
        partition, key = lane
        return [
            ConsumerRecord(partition.topic, partition.partition, -1, 0, 0, key, value, None, 4, 5, ())
            for value in values
        ], place + 100

    await publish(settings, topic, [(b"long", value) for value in wanted])
    partition = await partition_of(settings, topic, b"long")
    other = next(key for key in await keys_on(settings, topic, partition) if key != b"long")
    await publish(settings, topic, [(other, b"x")])
    async with running(settings, topic, handler, owed) as lanes:
        await asyncio.wait_for(single.wait(), 60)
        in_hand = sum(lanes.unfinished.values())
        release.set()
        await asyncio.wait_for(all_seen.wait(), 60)

    assert 0 < in_hand <= 300
    assert await committed(settings, topic) == 6001


async def test_a_token_has_its_partitions_of_both_topics_in_one_process(
    settings: KafkaSettings, fresh_topics: str
) -> None:
    """Its limits are counted there, and nowhere else (promise P5)."""
    topics = Topics(fresh_topics)
    works = {topic: Work(nothing, 10, 1.0) for topic in (topics.order_events, topics.order_windows)}
    replicas = [Lanes(lambda: consumer(settings), works, progressed=lambda: None) for _ in range(2)]
    tasks = [asyncio.create_task(replica.run()) for replica in replicas]
    try:
        async with asyncio.timeout(90):
            while not all(replica.unfinished for replica in replicas):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        owned = [
            {topic: {place.partition for place in replica.unfinished if place.topic == topic} for topic in works}
            for replica in replicas
        ]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    for numbers in owned:
        assert numbers[topics.order_events] == numbers[topics.order_windows]


async def nothing(_records: Sequence[ConsumerRecord]) -> None:
    """All is done at once."""


async def partition_of(settings: KafkaSettings, topic: str, key: bytes) -> int:
    """Where the producer puts records of a key."""
    producer = AIOKafkaProducer(bootstrap_servers=list(settings.kafka_bootstrap_servers))
    await producer.start()
    try:
        partitions = await producer.partitions_for(topic)
        return int(DefaultPartitioner()(key, sorted(partitions), sorted(partitions)))
    finally:
        await producer.stop()


async def keys_on(settings: KafkaSettings, topic: str, partition: int) -> list[bytes]:
    """A few keys whose records are put into a partition."""
    keys = [b"%d" % number for number in range(30)]
    return [key for key in keys if await partition_of(settings, topic, key) == partition][:5]


@given(st.lists(st.integers(0, 3), max_size=60), st.data())
def test_the_committed_offset_never_passes_a_record_that_is_not_done(gaps: list[int], data: st.DataObject) -> None:
    ownership = Ownership()
    offsets = [7 + number + sum(gaps[: number + 1]) for number in range(len(gaps))]
    for offset in offsets:
        ownership.add(offset)
    order = data.draw(st.permutations(offsets))

    for number, offset in enumerate(order):
        ownership.finish([offset])

        waiting = order[number + 1 :]
        assert ownership.unfinished == len(waiting)
        assert ownership.committable == (min(waiting) if waiting else offsets[-1] + 1)


def test_a_stuck_record_holds_the_committed_offset_back_only_so_far() -> None:
    """What is committed late is done again after a restart; the stuck record itself is owed in the database."""
    ownership = Ownership()
    ownership.add(0)
    for offset in range(1, 50_000):
        ownership.add(offset)
        ownership.finish([offset])

    behind = 50_000 - (ownership.committable or 0)
    ownership.finish([0])

    assert behind <= 20_000
    assert (ownership.committable, ownership.unfinished) == (50_000, 0)


def test_long_lanes_leave_room_however_many_there_are() -> None:
    ownership = Ownership()
    offsets = itertools.count()
    waiting = [0] * 100
    for lane in range(100):
        while ownership.has_room(waiting[lane]):
            ownership.add(next(offsets))
            waiting[lane] += 1

    assert waiting[0] == 60
    assert ownership.unfinished < 300


def test_the_low_water_mark_waits_for_the_first_unfinished_record() -> None:
    ownership = Ownership()
    for offset in (5, 6, 9):
        ownership.add(offset)

    ownership.finish([9, 6])
    before = ownership.committable
    ownership.finish([5])

    assert before == ownership.committed == 5
    assert (ownership.committable, ownership.unfinished) == (10, 0)
