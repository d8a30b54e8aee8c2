"""The questions that the stack itself asks a broker, each with a client of its own and an end in time."""

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

_Result = TypeVar("_Result")

# Until a broker is up, a client's complaints are expected; the log tail in our own error says more.
logging.getLogger("aiokafka").addFilter(lambda record: threading.current_thread().name != "devstack-probe")


def finish(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end in a thread of its own: works inside and outside a running event loop."""
    outcome: list[Callable[[], _Result]] = []

    def work() -> None:
        try:
            result = asyncio.run(coroutine)
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            failure = error

            def fail() -> _Result:
                raise failure

            outcome.append(fail)
        else:
            outcome.append(lambda: result)

    thread = threading.Thread(target=work, name="devstack-probe")
    thread.start()
    thread.join()
    return outcome[0]()


async def _knows_metadata(bootstrap_servers: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=5_000)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        if not cluster["brokers"]:
            raise KafkaError("the broker lists no broker")
    finally:
        await admin.close()


async def _passes_a_record(bootstrap_servers: str) -> None:
    """One record in and out of a topic that exists only for this."""
    topic = f"devstack-ready-{secrets.token_hex(6)}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=5_000)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
        async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer:
            await producer.send_and_wait(topic, b"ready", partition=0)
        async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            consumer.seek(partition, 0)
            record = await consumer.getone()
        if record.value != b"ready":
            raise KafkaError(f"the broker gave back {record.value!r}")
        await admin.delete_topics([topic])
    finally:
        await admin.close()


def has_metadata(bootstrap_servers: str) -> bool:
    """Whether a client gets the cluster's metadata."""
    return _succeeds(_knows_metadata(bootstrap_servers))


def passes_a_record(bootstrap_servers: str) -> bool:
    """Whether a client gets back what it produced."""
    return _succeeds(_passes_a_record(bootstrap_servers))


def _succeeds(probe: Coroutine[Any, Any, None]) -> bool:
    async def with_a_limit() -> None:
        async with asyncio.timeout(10):
            await probe

    try:
        finish(with_a_limit())
    except (KafkaError, OSError, TimeoutError):
        return False
    return True
