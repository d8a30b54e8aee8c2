"""Results on their way to the writer, and unreadable records on their way to the dead letters."""

from collections.abc import Iterable
from uuid import UUID

from aiokafka import ConsumerRecord

from shared.delivery import DeadLetter
from shared.kafka import RecordProducer
from shared.logs import current_correlation_id
from shared.messages import Record, headers
from shared.topics import Topics
from shared.tracing import traceparent

SERVICE = "enricher"


class Publisher:
    """Publishes and waits for the acknowledgement: only then may an input record count as done."""

    def __init__(self, producer: RecordProducer, topics: Topics) -> None:
        self._producer = producer
        self._topics = topics

    async def results(self, records: Iterable[Record], *, run_id: UUID | None = None) -> None:
        """Publish to `orders`, keyed by token; raises PublishFailedError."""
        carried = headers(correlation_id=current_correlation_id(), run_id=run_id, traceparent=traceparent())
        await self._producer.publish_all(
            self._topics.orders, [(record.key, record.encode(), carried) for record in records]
        )

    async def dead_letter(self, record: ConsumerRecord, error: Exception, *, attempts: int = 1) -> None:
        """Set a record aside as it came, with its cause; raises PublishFailedError."""
        letter = DeadLetter.of(record, error, service=SERVICE, attempts=attempts)
        await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing()])
