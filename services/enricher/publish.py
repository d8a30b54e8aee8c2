"""Results on their way to the writer, and unreadable records on their way to the dead letters."""

from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

from aiokafka import ConsumerRecord

from shared.allegro.bodies import UnreadablePart
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
        await self._set_aside(DeadLetter.of(record, error, service=SERVICE, attempts=attempts))

    async def unreadable(self, record: ConsumerRecord, part: UnreadablePart) -> None:
        """Set aside an order of Allegro's answer that nobody can read: its bytes, where the record in hand stands.

        Raises PublishFailedError.
        """
        await self._set_aside(replace(DeadLetter.of(record, part.error, service=SERVICE), value=part.raw))

    async def _set_aside(self, letter: DeadLetter) -> None:
        await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing()])
