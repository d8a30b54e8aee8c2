"""Batches that several publications share: nobody's end is another's, and nothing overtakes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerClosed

from shared.kafka_batches import Batches, FewerPartitionsError, ended
from shared.topics import Topics

pytestmark = pytest.mark.integration

_SMALL_BATCH_BYTES = 2048
_PARTITIONS = 3  # as `fresh_topics` makes them


@pytest.fixture
async def producer(kafka_bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(
        bootstrap_servers=kafka_bootstrap, acks="all", max_batch_size=_SMALL_BATCH_BYTES
    ) as opened:
        yield opened


async def _published(kafka_bootstrap: str, topic: str, count: int) -> list[bytes]:
    """All values of the topic's partitions, each partition in its order."""
    found: dict[TopicPartition, list[bytes]] = {}
    async with AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest") as consumer:
        places = [TopicPartition(topic, number) for number in range(_PARTITIONS)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        async with asyncio.timeout(30):
            while sum(map(len, found.values())) < count:
                for place, records in (await consumer.getmany(timeout_ms=500)).items():
                    found.setdefault(place, []).extend(record.value for record in records)
    return [value for values in found.values() for value in values]


async def _acknowledged(batches: Batches, topic: str, values: list[bytes]) -> None:
    mine = await batches.put(topic, [(b"one", value, []) for value in values])
    await ended(mine)
    for batch in mine:
        batch.acknowledged.result()


async def test_records_of_many_batches_keep_their_order(
    kafka_bootstrap: str, fresh_topics: str, producer: AIOKafkaProducer
) -> None:
    """aiokafka takes one batch of a partition at a time; whoever comes when it is free would overtake those waiting."""
    topic = Topics(fresh_topics).orders
    batches = Batches(producer)
    values = [b"%06d" % number + bytes(500) for number in range(400)]

    await asyncio.gather(*(_acknowledged(batches, topic, values[start : start + 50]) for start in range(0, 400, 50)))

    assert await _published(kafka_bootstrap, topic, 400) == values


async def test_publications_at_the_same_time_share_a_batch_and_one_that_is_given_up_ends_no_other(
    kafka_bootstrap: str, fresh_topics: str, producer: AIOKafkaProducer
) -> None:
    topic = Topics(fresh_topics).orders
    batches = Batches(producer)
    mine = await batches.put(topic, [(b"one", b"mine", [])])
    yours = await batches.put(topic, [(b"one", b"yours", [])])

    given_up = asyncio.create_task(ended(mine))
    await asyncio.sleep(0)
    given_up.cancel()
    await ended(yours)

    assert mine == yours
    assert [batch.acknowledged.exception() for batch in yours] == [None]
    assert await _published(kafka_bootstrap, topic, 2) == [b"mine", b"yours"]


async def test_what_is_not_sent_at_the_end_is_told_to_whoever_waits(
    fresh_topics: str, producer: AIOKafkaProducer
) -> None:
    batches = Batches(producer)
    lingering = await batches.put(Topics(fresh_topics).orders, [(b"one", b"1", [])])

    await batches.close()

    for batch in lingering:
        with pytest.raises(ProducerClosed):
            batch.acknowledged.result()


async def test_what_is_under_way_at_the_end_is_told_to_whoever_waits(
    fresh_topics: str, producer: AIOKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        sending.set()
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(producer, "send_batch", hang)
    batches = Batches(producer)
    under_way = await batches.put(Topics(fresh_topics).orders, [(b"one", b"1", [])])
    await sending.wait()

    await batches.close()

    for batch in under_way:
        with pytest.raises(ProducerClosed):
            batch.acknowledged.result()


class _Shrinking:
    """A producer whose metadata shows a topic with fewer partitions for a moment."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self.client = self
        self.shown = _PARTITIONS
        self.asked_anew = 0

    async def partitions_for(self, _topic: str) -> set[int]:
        return set(range(self.shown))

    async def force_metadata_update(self) -> None:
        self.asked_anew += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)


async def test_a_key_keeps_its_partition_while_a_topic_is_shown_with_fewer(
    kafka_bootstrap: str, fresh_topics: str, producer: AIOKafkaProducer
) -> None:
    topic = Topics(fresh_topics).orders
    shrinking = _Shrinking(producer)
    batches = Batches(shrinking)
    await _acknowledged(batches, topic, [b"first"])

    shrinking.shown = 1
    with pytest.raises(FewerPartitionsError, match="has 1 partitions, and had 3"):
        await batches.put(topic, [(b"one", b"lost", [])])
    shrinking.shown = _PARTITIONS
    await _acknowledged(batches, topic, [b"second"])

    assert await _published(kafka_bootstrap, topic, 2) == [b"first", b"second"]
    assert shrinking.asked_anew == 1
