"""Publishing: every record keyed, every batch acknowledged within a deadline of ours, or an error."""

import asyncio
import logging
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from shared.errors import TransientError
from shared.settings import KafkaSettings
from shared.topics import create_topics

logger = logging.getLogger(__name__)

OutgoingRecord = tuple[bytes, bytes, Sequence[tuple[str, bytes]]]
"""Key, value and headers."""

# An order of many line items on one page of 100 stays far below; the broker's own limit has to allow it too.
_MAX_REQUEST_BYTES = 12 << 20
_MAX_BATCH_BYTES = 256 << 10
_LINGER_MS = 5
_REQUEST_TIMEOUT_MS = 20_000
_PUBLISH_TIMEOUT_SECONDS = 30.0
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 5.0


class PublishFailedError(TransientError):
    """Not every record was acknowledged; publishing all of them again does no harm."""


class RecordProducer:
    """Publishes and waits for the acknowledgement of all replicas.

    FastStream's own `publish_batch` would put the whole batch on one partition, whatever the keys; and an idempotent
    producer waits for ever while the broker is away, hence the deadline.
    """

    def __init__(self, settings: KafkaSettings, *, service: str) -> None:
        self._settings = settings
        self._service = service
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect, waiting as long as the broker is away; create missing topics (a wiped broker has none)."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            producer = AIOKafkaProducer(
                bootstrap_servers=list(self._settings.kafka_bootstrap_servers),
                client_id=f"orders-backup-{self._service}",
                acks="all",
                enable_idempotence=self._settings.kafka_idempotent_producer,
                compression_type=None
                if self._settings.kafka_compression == "none"
                else self._settings.kafka_compression,
                linger_ms=_LINGER_MS,
                max_batch_size=_MAX_BATCH_BYTES,
                max_request_size=_MAX_REQUEST_BYTES,
                request_timeout_ms=_REQUEST_TIMEOUT_MS,
                metadata_max_age_ms=30_000,
            )
            try:
                await producer.start()
                await self.ensure_topics()
            except (KafkaError, OSError) as error:
                await producer.stop()
                logger.warning("Kafka is not reachable yet", extra={"error": repr(error), "retry_in_seconds": delay})
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_RETRY_SECONDS)
            else:
                self._producer = producer
                return

    async def ensure_topics(self) -> None:
        """Create the topics that are missing; raises aiokafka's errors if the broker is away."""
        created = await create_topics(
            self._settings.kafka_bootstrap_servers,
            self._settings.topics,
            partitions=self._settings.kafka_topic_partitions,
            replication_factor=self._settings.kafka_replication_factor,
        )
        if created:
            logger.warning("topics were missing and have been created", extra={"topics": created})

    async def publish_all(self, topic: str, records: Sequence[OutgoingRecord]) -> None:
        """Publish, keeping the order of the records of one key; raises PublishFailedError."""
        producer = self._producer
        if producer is None:
            raise RuntimeError("RecordProducer.start() has to run before anything is published")
        if not records:
            return
        try:
            async with asyncio.timeout(_PUBLISH_TIMEOUT_SECONDS):
                acknowledgements = [
                    await producer.send(topic, key=key, value=value, headers=list(headers))
                    for key, value, headers in records
                ]
                await asyncio.gather(*acknowledgements)
        except (KafkaError, OSError, TimeoutError) as error:
            raise PublishFailedError(f"publishing to {topic} failed: {error!r}") from error

    async def ping(self) -> None:
        """Ask the broker for metadata; raises aiokafka's errors or TimeoutError if it is away."""
        if self._producer is None:
            raise PublishFailedError("not connected to Kafka yet")
        async with asyncio.timeout(3.0):
            await self._producer.client.fetch_all_metadata()

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None
