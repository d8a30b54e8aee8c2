"""Kafka, used safely: a producer whose acknowledgements are awaited, a broker for FastStream, a wait for the topics.

FastStream's `publish_batch` ignores keys for partitioning, so records go out over aiokafka's producer, by partition
(`kafka_batches.py`). Its batches wait for ever where idempotence is on, hence a deadline of our own.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Self

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from faststream.kafka import KafkaBroker
from prometheus_client import Counter, Histogram

from shared.errors import ConfigurationError, PermanentError, TransientError
from shared.kafka_batches import Batches, OutgoingRecord, ended
from shared.kafka_connection import connection_options, faststream_security
from shared.patience import until_answered
from shared.settings import KafkaSettings
from shared.topics import create_topics
from shared.tracing import span, tell

logger = logging.getLogger(__name__)

PUBLISHED = Counter("orders_backup_kafka_records_published_total", "Records that Kafka has acknowledged.", ["topic"])
PUBLISH_SECONDS = Histogram(
    "orders_backup_kafka_publish_seconds",
    "Time until Kafka has acknowledged what was published together; rising: the broker is slow or away.",
    ["topic"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)

_MAX_BATCH_BYTES = 256 * 1024
MAX_RECORD_BYTES = 12 * 1024 * 1024
_REQUEST_TIMEOUT_SECONDS = 20.0
_PUBLISH_DEADLINE_SECONDS = 30.0
_STOP_SECONDS = 5.0
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 5.0


class PublishFailedError(TransientError):
    """Not every record was acknowledged: some may be there, none is known to be. Publish all of them again."""


class UnsendableRecordError(PermanentError):
    """A record that Kafka, or its client, will never take: it is too large, or has neither key nor value."""


class RecordProducer:
    """Publishes records and returns when every one is acknowledged by all in-sync replicas."""

    def __init__(
        self, settings: KafkaSettings, *, service: str, deadline_seconds: float = _PUBLISH_DEADLINE_SECONDS
    ) -> None:
        self._settings = settings
        self._service = service
        self._deadline_seconds = deadline_seconds
        self._open: tuple[AIOKafkaProducer, Batches] | None = None
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        """Connect; waits as long as Kafka is away."""
        await until_answered("Kafka", self._connected, (PublishFailedError,))

    async def stop(self) -> None:
        """Close; what is not acknowledged by now is given up after a few seconds."""
        opened, self._open = self._open, None
        if opened is not None:
            producer, batches = opened
            await _stop(producer)
            await batches.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def publish_all(self, topic: str, records: Iterable[OutgoingRecord]) -> None:
        """Publish in order, each to its key's partition, and wait for every acknowledgement.

        Raises PublishFailedError if one of them is missing, UnsendableRecordError for a record that never can be sent.
        """
        with span(
            f"publish {topic}", {"messaging.system": "kafka", "messaging.destination.name": topic}, kind="producer"
        ):
            await self._publish(topic, records)

    async def _publish(self, topic: str, records: Iterable[OutgoingRecord]) -> None:
        outgoing = [_sendable(topic, record) for record in records]
        if not outgoing:
            return
        producer, batches = await self._connected()
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._deadline_seconds):
                mine = await batches.put(topic, outgoing)
                await ended(mine)
            while mine:  # nothing here refers to one that failed: error and traceback would hold the records
                mine.pop().acknowledged.result()
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            # Nobody else's: what is larger than a batch has one to itself.
            if self._settings.kafka_idempotent_producer:
                await self._discard(producer)  # the broker may have refused it, behind a sequence number
            raise UnsendableRecordError(f"{topic}: {error!r}") from error
        except (KafkaError, TimeoutError) as error:
            if self._settings.kafka_idempotent_producer:
                await self._discard(producer)
            raise PublishFailedError(f"{topic}: not acknowledged: {error!r}") from error
        PUBLISH_SECONDS.labels(topic).observe(time.perf_counter() - started)
        PUBLISHED.labels(topic).inc(len(outgoing))
        tell({"messaging.batch.message_count": len(outgoing)})

    async def _connected(self) -> tuple[AIOKafkaProducer, Batches]:
        async with self._opening:
            if self._open is None:
                producer = AIOKafkaProducer(
                    **connection_options(self._settings), **_client_options(self._settings, self._service)
                )
                try:
                    async with asyncio.timeout(self._deadline_seconds):
                        await producer.start()
                except (KafkaError, OSError, TimeoutError) as error:
                    await _stop(producer)
                    raise PublishFailedError(f"Kafka is not reachable: {error!r}") from error
                except BaseException:
                    await _stop(producer)
                    raise
                self._open = producer, Batches(producer)
            return self._open

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        """An idempotent producer that failed has used up sequence numbers and fails ever after (aiokafka #1017)."""
        if self._open is not None and self._open[0] is producer:
            await self.stop()


def _sendable(topic: str, record: OutgoingRecord) -> OutgoingRecord:
    """The record; raises UnsendableRecordError for one that Kafka would refuse."""
    key, value, given = record
    headers = list(given)  # aiokafka takes no other sequence
    if key is None and value is None:
        raise UnsendableRecordError(f"{topic}: a record without key and value")
    size = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)
    if size > MAX_RECORD_BYTES:
        raise UnsendableRecordError(f"{topic}: a record of {size} bytes; Kafka takes {MAX_RECORD_BYTES}")
    return key, value, headers


async def _stop(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await producer.stop()
    except (KafkaError, OSError, TimeoutError) as error:
        logger.warning("the producer did not stop in time", extra={"error": repr(error)})


def _client_options(settings: KafkaSettings, service: str) -> dict[str, Any]:
    compression = settings.kafka_compression
    return {
        "client_id": f"orders-backup-{service}",
        "acks": "all",
        "enable_idempotence": settings.kafka_idempotent_producer,
        "compression_type": None if compression == "none" else compression,
        "max_batch_size": _MAX_BATCH_BYTES,
        "max_request_size": MAX_RECORD_BYTES,
        "request_timeout_ms": int(_REQUEST_TIMEOUT_SECONDS * 1000),
        "metadata_max_age_ms": 30_000,
    }


async def _reach(settings: KafkaSettings) -> None:
    client = AIOKafkaClient(**connection_options(settings))
    try:
        await client.bootstrap()
    finally:
        await client.close()


class PatientBroker(KafkaBroker):
    """FastStream's broker, waiting for Kafka: its own ends the process where Kafka is away when it connects."""

    def __init__(self, settings: KafkaSettings, **options: Any) -> None:
        super().__init__(bootstrap_servers=list(settings.kafka_bootstrap_servers), **options)
        self._settings = settings

    async def connect(self) -> Any:
        """Connect; waits as long as Kafka is away."""
        return await until_answered("Kafka", self._try_to_connect, (KafkaError, OSError, TimeoutError))

    async def _try_to_connect(self) -> Any:
        await _reach(self._settings)  # a connection that failed cannot be closed in FastStream
        return await super().connect()


def faststream_broker(settings: KafkaSettings, *, service: str) -> KafkaBroker:
    """FastStream's broker with the defaults that lose data or create topics by mistake turned off."""
    return PatientBroker(
        settings,
        security=faststream_security(settings),
        **_client_options(settings, service),
        allow_auto_create_topics=False,
        graceful_timeout=20.0,
        logger=logging.getLogger("faststream"),
        log_level=logging.DEBUG,
    )


async def check_kafka(broker: KafkaBroker, *, seconds: float = 2.0) -> None:
    """Raises TransientError if Kafka gives no metadata."""
    if not await broker.ping(timeout=seconds):
        raise TransientError(f"no metadata within {seconds:g} s")


async def partitions_of(settings: KafkaSettings) -> dict[str, int]:
    """Partitions of each of our topics that exist; raises TransientError if Kafka is away."""
    admin = AIOKafkaAdminClient(**connection_options(settings), request_timeout_ms=10_000)
    try:
        async with asyncio.timeout(15):
            await admin.start()
            # All of them: asking for a topic by name may create it.
            described = await admin.describe_topics()
    except (KafkaError, OSError, TimeoutError) as error:
        raise TransientError(f"Kafka gives no metadata: {error!r}") from error
    finally:
        await admin.close()
    ours = set(settings.topics.all())
    return {
        topic["topic"]: len(topic["partitions"])
        for topic in described
        if topic["topic"] in ours and not topic["error_code"]
    }


async def wait_for_topics(settings: KafkaSettings, *, patience_seconds: float = 60.0) -> None:
    """Wait until all topics are there, as long as it takes Kafka to answer and `patience_seconds` from then on.

    Raises ConfigurationError if they are not created by then, or differ in their number of partitions.
    """
    delay = _FIRST_RETRY_SECONDS
    deadline: float | None = None
    now = asyncio.get_running_loop().time
    while True:
        try:
            partitions = await partitions_of(settings)
        except TransientError as error:
            logger.warning("waiting for Kafka", extra={"error": str(error), "retry_in_seconds": delay})
        else:
            missing = sorted(set(settings.topics.all()) - set(partitions))
            if not missing:
                _require_equal(partitions)
                return
            if deadline is None:
                deadline = now() + patience_seconds
            if now() >= deadline:
                raise ConfigurationError(
                    f"KAFKA_BOOTSTRAP_SERVERS: there is no topic {', '.join(missing)}: run `orders-backup setup`"
                )
            logger.warning("waiting for topics", extra={"missing": missing, "retry_in_seconds": delay})
        await asyncio.sleep(delay)
        delay = min(delay * 2, _LONGEST_RETRY_SECONDS)


def _require_equal(partitions: dict[str, int]) -> None:
    if len(set(partitions.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(partitions.items()))
        raise ConfigurationError(
            f"KAFKA_TOPIC_PREFIX: the topics differ in their number of partitions ({counts}); a token's records must"
            " have one partition number: bring them to the same number"
        )


async def ensure_topics(settings: KafkaSettings) -> None:
    """Create the topics that are missing: a broker that lost its data comes back without them.

    Raises aiokafka's errors if Kafka is away.
    """
    created = await create_topics(
        settings.kafka_bootstrap_servers,
        settings.topics,
        partitions=settings.kafka_topic_partitions,
        replication_factor=settings.kafka_replication_factor,
        connection=connection_options(settings),
    )
    if created:
        logger.warning("topics were missing and have been created", extra={"topics": created})
