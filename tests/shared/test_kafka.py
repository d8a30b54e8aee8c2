"""Publishing to a real broker: by key, in order, acknowledged or an error."""

import asyncio
import os
import signal
import socket
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from devstack.tansu import Tansu
from shared.delivery import lags_of, open_consumer, watched
from shared.errors import ConfigurationError
from shared.kafka import (
    PublishFailedError,
    RecordProducer,
    UnsendableRecordError,
    check_kafka,
    ensure_topics,
    faststream_broker,
    wait_for_topics,
)
from shared.settings import KafkaSettings

pytestmark = pytest.mark.integration


def settings(bootstrap: str, prefix: str) -> KafkaSettings:
    return KafkaSettings.model_construct(
        kafka_bootstrap_servers=(bootstrap,),
        kafka_topic_prefix=prefix,
        kafka_topic_partitions=3,
        kafka_replication_factor=1,
        kafka_idempotent_producer=False,
        kafka_compression="zstd",
    )


def nobody_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


async def test_records_of_one_key_are_on_one_partition_in_the_order_of_their_publication(
    kafka_bootstrap: str, fresh_topics: str
) -> None:
    """FastStream's publish_batch would put each batch on a random partition."""
    where = settings(kafka_bootstrap, fresh_topics)
    topic = where.topics.order_events
    async with RecordProducer(where, service="test") as producer:
        for batch in range(5):
            records = [
                (str(key).encode(), f"{batch}-{number}".encode(), [("n", b"1")])
                for number in range(40)
                for key in range(9)
            ]
            await producer.publish_all(topic, records)

    found: defaultdict[bytes, list[str]] = defaultdict(list)
    partitions: defaultdict[bytes, set[int]] = defaultdict(set)
    async with AIOKafkaConsumer(bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest") as consumer:
        assigned = [TopicPartition(topic, number) for number in range(3)]
        consumer.assign(assigned)
        await consumer.seek_to_beginning(*assigned)
        async with asyncio.timeout(30):
            while sum(map(len, found.values())) < 5 * 40 * 9:
                for records_of_partition in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records_of_partition:
                        found[record.key].append(record.value.decode())
                        partitions[record.key].add(record.partition)
                        assert record.headers == (("n", b"1"),)

    expected = [f"{batch}-{number}" for batch in range(5) for number in range(40)]
    assert {key: values == expected for key, values in found.items()} == {str(key).encode(): True for key in range(9)}
    assert all(len(numbers) == 1 for numbers in partitions.values())
    assert len(set.union(*partitions.values())) > 1


async def test_a_broker_that_is_away_is_an_error_in_time() -> None:
    producer = RecordProducer(settings(nobody_listens(), ""), service="test", deadline_seconds=2)

    with pytest.raises(PublishFailedError):
        async with asyncio.timeout(10):
            await producer.publish_all("orders", [(b"1", b"{}", [])])


async def published(producer: RecordProducer, topic: str, value: bytes) -> None:
    """Publish one record for each of a few keys, again and again until Kafka has them, as every caller does."""
    while True:
        try:
            await producer.publish_all(topic, [(b"%d" % key, value, []) for key in range(9)])
        except PublishFailedError:
            continue
        return


async def test_what_was_given_up_while_kafka_was_silent_does_not_come_after_it(tmp_path: Path) -> None:
    """A broker that is stopped as a debugger stops it: its connections stay open, and nothing answers."""
    values: list[bytes | None] = []
    with Tansu(tmp_path) as kafka:
        where = settings(kafka.bootstrap_servers, "")
        await ensure_topics(where)
        topic = where.topics.orders
        async with RecordProducer(where, service="test", deadline_seconds=0.5) as producer, asyncio.timeout(90):
            await published(producer, topic, b"before")
            os.kill(kafka.pid, signal.SIGSTOP)
            try:
                for attempt in range(6):
                    publications = [
                        producer.publish_all(topic, [(b"%d" % key, b"%d" % attempt, [])]) for key in range(200)
                    ]
                    outcomes = await asyncio.gather(*publications, return_exceptions=True)
                    assert {type(outcome) for outcome in outcomes} == {PublishFailedError}
                under_way = sum(task.get_name().startswith("send to ") for task in asyncio.all_tasks())
            finally:
                os.kill(kafka.pid, signal.SIGCONT)
            await published(producer, topic, b"after")
            async with AIOKafkaConsumer(
                bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest"
            ) as consumer:
                consumer.assign([TopicPartition(topic, number) for number in range(3)])
                while values.count(b"after") < 9:
                    for records in (await consumer.getmany(timeout_ms=500)).values():
                        values += [record.value for record in records]

    # aiokafka has at most three of a partition: on the wire, to go next, and waiting for that place.
    assert under_way <= 3 * 3
    assert set(values) <= {b"before", b"0", b"1", b"2", b"after"}


async def test_a_record_that_kafka_never_takes_is_told_apart(kafka_bootstrap: str, fresh_topics: str) -> None:
    where = settings(kafka_bootstrap, fresh_topics)
    async with RecordProducer(where, service="test") as producer:
        with pytest.raises(UnsendableRecordError):
            await producer.publish_all(where.topics.orders, [(b"1", bytes(13 << 20), [])])
        with pytest.raises(UnsendableRecordError):
            await producer.publish_all(where.topics.orders, [(None, None, [])])


async def test_missing_topics_are_waited_for_and_then_named_with_what_creates_them(
    kafka_bootstrap: str, topic_prefix: str
) -> None:
    where = settings(kafka_bootstrap, topic_prefix)
    with pytest.raises(ConfigurationError, match=f"{topic_prefix}order-events.*orders-backup setup"):
        await wait_for_topics(where, patience_seconds=0.3)

    waiting = asyncio.create_task(wait_for_topics(where, patience_seconds=30))
    await ensure_topics(where)

    async with asyncio.timeout(30):
        await waiting


async def test_topics_of_different_partition_counts_are_refused(kafka_bootstrap: str, topic_prefix: str) -> None:
    where = settings(kafka_bootstrap, topic_prefix)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(where.topics.orders, num_partitions=1, replication_factor=1)])
    await admin.close()
    await ensure_topics(where)

    with pytest.raises(ConfigurationError, match="number of partitions"):
        await wait_for_topics(where)


async def test_the_broker_check_says_whether_kafka_answers(kafka_bootstrap: str, fresh_topics: str) -> None:
    broker = faststream_broker(settings(kafka_bootstrap, fresh_topics), service="test")
    async with broker:
        await broker.start()
        await check_kafka(broker)


async def test_the_broker_waits_for_kafka_when_it_connects(tmp_path: Path) -> None:
    """FastStream's own ends the process; Kafka may have gone away since our producer has connected."""
    kafka = Tansu(tmp_path)
    broker = faststream_broker(settings(kafka.bootstrap_servers, "any-"), service="test")
    connecting = asyncio.create_task(broker.start())
    await asyncio.wait([connecting], timeout=0.5)
    waited = not connecting.done()
    with kafka:
        async with asyncio.timeout(30):
            await connecting  # `async with broker` would connect once more beside it
            try:
                await check_kafka(broker)
            finally:
                await broker.stop()

    assert waited


async def test_a_consumer_says_how_many_records_stand_in_front_of_it(kafka_bootstrap: str, fresh_topics: str) -> None:
    where = KafkaSettings(kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics)
    topic = where.topics.orders
    consumer = open_consumer(where, group="lag", service="test", max_poll_interval_ms=60_000)
    consumer.subscribe([topic])
    async with RecordProducer(where, service="test") as producer, asyncio.timeout(60):
        await producer.publish_all(topic, [(b"one", str(number).encode(), []) for number in range(5)])
        async with consumer:
            await consumer.getmany(timeout_ms=30_000, max_records=2)
            some = await lags_of(consumer)
            while await lags_of(consumer) != {topic: 0}:
                await consumer.getmany(timeout_ms=1_000)

    assert some == {topic: 3}


async def test_a_consumer_whose_log_was_lost_begins_again(
    kafka_bootstrap: str, fresh_topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group stands at 100, and what Kafka has ends at 5: the embedded broker gives nothing and says nothing."""
    monkeypatch.setattr("shared.delivery._LAG_SECONDS", 0.2)
    where = KafkaSettings(
        kafka_bootstrap_servers=(kafka_bootstrap,), kafka_topic_prefix=fresh_topics, kafka_session_timeout_seconds=6
    )
    topic = where.topics.orders
    one = partial(open_consumer, where, group="lost", service="test", max_poll_interval_ms=60_000)
    found: list[bytes | None] = []
    async with RecordProducer(where, service="test") as producer, asyncio.timeout(90):
        await producer.publish_all(topic, [(b"one", str(number).encode(), []) for number in range(5)])
        before = one()
        before.subscribe([topic])
        async with before:
            await before.commit(dict.fromkeys(before.assignment(), 100))
        consumer = one()
        consumer.subscribe([topic])
        async with consumer, watched(consumer):
            while len(found) < 5:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += [record.value for record in records]

    assert found == [b"0", b"1", b"2", b"3", b"4"]
