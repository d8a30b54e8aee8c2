"""Whether a fault that was to lose a broker's records lost them, on a real broker."""

import asyncio
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from devstack.chaos.broker_view import committed_offsets, delete_topics, first_records, members_of, survivors
from shared.kafka import RecordProducer
from shared.settings import KafkaSettings
from shared.topics import Topics, create_topics

pytestmark = pytest.mark.integration

_PARTITIONS = 3
_SECONDS = 60


@pytest.fixture
def topics(fresh_topics: str) -> Topics:
    return Topics(fresh_topics)


async def publish(broker: str, topic: str) -> None:
    settings = KafkaSettings(kafka_bootstrap_servers=(broker,))
    async with RecordProducer(settings, service="test") as producer:
        await producer.publish_all(topic, [(b"%d" % number, b"{}", ()) for number in range(30)])


async def test_records_that_stand_where_they_stood_are_survivors(kafka_bootstrap: str, topics: Topics) -> None:
    await publish(kafka_bootstrap, topics.orders)
    before = await first_records(kafka_bootstrap, topics.prefix)

    after = await first_records(kafka_bootstrap, topics.prefix)

    assert before
    assert {partition.topic for partition in before} == {topics.orders}
    assert len(survivors(before, after)) == len(before)


async def test_a_topic_that_was_deleted_and_filled_again_has_no_survivors(kafka_bootstrap: str, topics: Topics) -> None:
    await publish(kafka_bootstrap, topics.orders)
    before = await first_records(kafka_bootstrap, topics.prefix)

    deleted = await delete_topics(kafka_bootstrap, topics.all())
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                await create_topics([kafka_bootstrap], topics, partitions=_PARTITIONS, replication_factor=1)
                break
            except KafkaError:  # it is still being deleted
                await asyncio.sleep(0.1)
    await publish(kafka_bootstrap, topics.orders)

    after = await first_records(kafka_bootstrap, topics.prefix)
    assert sorted(deleted) == sorted(topics.all())
    assert len(after) == len(before)
    assert survivors(before, after) == []


async def test_a_group_is_asked_where_it_stands(kafka_bootstrap: str, topics: Topics) -> None:
    partitions = [TopicPartition(topics.orders, number) for number in range(_PARTITIONS)]
    group = f"{topics.prefix}group"

    async with AIOKafkaConsumer(
        bootstrap_servers=kafka_bootstrap, group_id=group, enable_auto_commit=False
    ) as consumer:
        consumer.assign(partitions)
        await consumer.commit({partitions[0]: 7})

    assert await committed_offsets(kafka_bootstrap, group, partitions[:1]) == {partitions[0]: 7}
    assert await committed_offsets(kafka_bootstrap, f"{group}-of-nobody", partitions) == {}


async def test_a_group_has_as_many_members_as_have_joined_and_not_left(kafka_bootstrap: str, topics: Topics) -> None:
    group = f"{topics.prefix}{uuid4().hex}"

    def a_member() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            topics.orders, bootstrap_servers=kafka_bootstrap, group_id=group, session_timeout_ms=6000
        )

    async def until_there_are(count: int) -> None:
        async with asyncio.timeout(_SECONDS):
            while await members_of(kafka_bootstrap, group) != count:  # noqa: ASYNC110 - a broker tells nobody
                await asyncio.sleep(0.1)

    async with a_member():
        second = a_member()
        await second.start()
        await until_there_are(2)
        await second.stop()
        await until_there_are(1)
