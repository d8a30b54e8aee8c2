"""A group whose leader left before it had led (real brokers): the embedded one's is freed, any other is left alone."""

import asyncio
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest

from devstack.brokers import Broker
from devstack.ports import free_port
from devstack.tansu import Tansu
from shared.delivery import GroupConsumer, SilentConsumerError, join, open_consumer
from shared.leaderless_group import free_if_leaderless
from shared.settings import KafkaSettings

# Apache Kafka takes no shorter ones (`group.min.session.timeout.ms`).
_SESSION_SECONDS = 6


def settings(kafka_bootstrap: str, prefix: str) -> KafkaSettings:
    return KafkaSettings(
        kafka_bootstrap_servers=(kafka_bootstrap,),
        kafka_topic_prefix=prefix,
        kafka_session_timeout_seconds=_SESSION_SECONDS,
    )


def a_consumer(where: KafkaSettings) -> GroupConsumer:
    consumer = open_consumer(where, group="led", service="test", max_poll_interval_ms=60_000)
    consumer.subscribe([where.topics.orders])
    return consumer


async def lose_the_leader(where: KafkaSettings, group: str) -> None:
    """Be elected, and leave before having distributed the partitions."""
    client = AIOKafkaClient(bootstrap_servers=list(where.kafka_bootstrap_servers))
    protocols = [("range", ConsumerProtocolMemberMetadata(0, [where.topics.orders], b"").encode())]
    try:
        await client.bootstrap()
        node = client.get_random_node()

        async def join_as(member: str) -> Any:
            return await client.send(
                node, JoinGroupRequest(group, _SESSION_SECONDS * 1000, 60_000, member, None, "consumer", protocols)
            )

        member = (await join_as("")).member_id  # known from now on (KIP-394)
        elected = await join_as(member)
        assert elected.leader_id == member
        await client.send(node, LeaveGroupRequest(group, member))
    finally:
        await client.close()


async def test_a_group_that_lost_its_leader_while_it_rebalanced_is_joined_all_the_same(
    broker: Broker, kafka_bootstrap: str, fresh_topics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once this asks for one attempt on the embedded broker as well, `shared/leaderless_group.py` can go."""
    where = settings(kafka_bootstrap, fresh_topics)
    await lose_the_leader(where, f"{fresh_topics}led")
    monkeypatch.setattr("shared.delivery._LONGEST_POLL_SECONDS", 10.0 if isinstance(broker, Tansu) else 60.0)

    attempts = 0
    async with asyncio.timeout(90):
        while True:
            consumer = a_consumer(where)
            attempts += 1
            try:
                await join(consumer)
                found = consumer.assignment()
            except SilentConsumerError:
                continue
            finally:
                await consumer.stop()
            break

    assert len(found) > 1
    assert (attempts > 1) == isinstance(broker, Tansu)


async def test_a_group_that_is_led_keeps_its_members_and_offsets(kafka_bootstrap: str, fresh_topics: str) -> None:
    where = settings(kafka_bootstrap, fresh_topics)
    consumer = a_consumer(where)
    async with asyncio.timeout(60):
        await join(consumer)
        one = min(consumer.assignment())
        await consumer.commit({one: 7})

        await consumer.free_group_if_leaderless()

        stands = await consumer.committed(one)
        await consumer.commit({one: 8})  # it is a member still
        await consumer.stop()
        await free_if_leaderless(where, f"{fresh_topics}led")
        async with a_consumer(where) as again:
            afterwards = await again.committed(one)

    assert (stands, afterwards) == (7, 8)


async def test_a_broker_that_is_away_is_no_reason_to_fail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await free_if_leaderless(settings(f"127.0.0.1:{free_port()}", "any-"), "any-led")

    assert "no saying whether the group has a leader" in caplog.text
