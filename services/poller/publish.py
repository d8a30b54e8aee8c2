"""Work on its way to the enricher, and events on their way to the writer."""

from collections.abc import Sequence
from uuid import UUID

from shared.allegro.bodies import UnreadablePart
from shared.delivery import DeadLetter
from shared.kafka import RecordProducer
from shared.logs import current_correlation_id
from shared.messages import OrderEvent, OrderFetch, OrderWindow, headers
from shared.topics import Topics
from shared.tracing import traceparent

SERVICE = "poller"


class Publisher:
    """Publishes and waits for the acknowledgements; every method raises PublishFailedError."""

    def __init__(self, producer: RecordProducer, topics: Topics) -> None:
        self._producer = producer
        self._topics = topics

    async def events(self, records: Sequence[OrderEvent | OrderFetch], *, run_id: UUID | None = None) -> None:
        """Publish to `order-events`."""
        carried = headers(correlation_id=current_correlation_id(), run_id=run_id, traceparent=traceparent())
        await self._producer.publish_all(
            self._topics.order_events, [(record.key, record.encode(), carried) for record in records]
        )

    async def windows(self, records: Sequence[OrderWindow]) -> None:
        """Publish to `order-windows`."""
        await self._producer.publish_all(
            self._topics.order_windows,
            [
                (
                    record.key,
                    record.encode(),
                    headers(correlation_id=current_correlation_id(), run_id=record.run_id, traceparent=traceparent()),
                )
                for record in records
            ],
        )

    async def unreadable(self, token_id: int, lines: Sequence[UnreadablePart], *, after: int) -> None:
        """Set aside lines of a journal: their bytes, and as their offset the position that was read before.

        So a line that is met again and again is the same dead letter.
        """
        letters = [
            DeadLetter(
                service=SERVICE,
                topic=self._topics.order_events,
                partition=0,
                offset=after if line.after is None else line.after,
                key=str(token_id).encode(),
                value=line.raw,
                headers=tuple(headers(correlation_id=current_correlation_id(), traceparent=traceparent())),
                error_type=type(line.error).__name__,
                error=str(line.error),
            )
            for line in lines
        ]
        await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing() for letter in letters])
