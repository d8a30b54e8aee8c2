"""What a broker holds, seen from outside: has a fault that was to lose its records really lost them?"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code

from devstack.canary import partitions_below

_ANSWER_SECONDS = 5.0
_WAIT_MS = 500
_QUIET_ROUNDS = 2


class First(NamedTuple):
    """The oldest record of a partition. Two records of different lives of a topic never agree in all of it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


Firsts = Mapping[TopicPartition, First]


async def first_records(bootstrap_servers: str, prefix: str) -> Firsts:
    """The oldest record of every partition that has one, of the topics that begin so."""
    found: dict[TopicPartition, First] = {}
    everything = await partitions_below(bootstrap_servers, prefix)
    if not everything:
        return found
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
        # Asked before anything is fetched: the embedded broker answers one request of a connection after the other.
        begins, ends = await consumer.beginning_offsets(everything), await consumer.end_offsets(everything)
        consumer.assign(everything)
        for partition in everything:
            consumer.seek(partition, begins[partition])
        known = {partition for partition in everything if begins[partition] < ends[partition]}
        # The embedded broker reports end offsets that are too low: of the others, look until nothing new comes.
        quiet = 0
        while not known <= found.keys() or (quiet < _QUIET_ROUNDS and len(found) < len(everything)):
            batches = await consumer.getmany(timeout_ms=_WAIT_MS)
            quiet = 0 if batches else quiet + 1
            for partition, records in batches.items():
                consumer.pause(partition)
                if records and partition not in found:
                    found[partition] = First(records[0].offset, records[0].timestamp, records[0].key, records[0].value)
    return found


def survivors(before: Firsts, after: Firsts) -> list[str]:
    """Partitions that still begin with the record with which they began before."""
    return sorted(f"{one.topic}/{one.partition}" for one, first in before.items() if after.get(one) == first)


async def members_of(bootstrap_servers: str, group: str) -> int:
    """How many members share a consumer group's partitions; 0 during a rebalance.

    Raises KafkaError or TimeoutError where there is no saying.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await admin.start()
            (answer,) = await admin.describe_consumer_groups([group])
    finally:
        await admin.close()
    _code, _name, state, _type, _protocol, members = answer.groups[0][:6]
    return len(members) if state == "Stable" else 0


async def delete_topics(bootstrap_servers: str, wanted: Iterable[str]) -> list[str]:
    """Delete those that are there; returns their names. Raises KafkaError if the broker refuses one."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        present = set(await admin.list_topics())
        names = [name for name in wanted if name in present]
        response = await admin.delete_topics(names)
        for topic, code, *_ in response.topic_error_codes:
            if code:
                raise KafkaError(f"{topic} was not deleted: {for_code(code).__name__}")
    finally:
        await admin.close()
    return names


async def committed_offsets(
    bootstrap_servers: str, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Where a group stands; partitions for which it has committed nothing are left out. The embedded broker has to be
    asked by their names."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group, partitions=list(partitions))
    finally:
        await admin.close()
    return {partition: stand.offset for partition, stand in offsets.items() if stand.offset >= 0}
