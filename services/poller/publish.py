"""Work on its way to the enricher, and events on their way to the writer."""

from collections.abc import Sequence
from uuid import UUID

from shared.kafka import RecordProducer
from shared.logs import current_correlation_id
from shared.messages import OrderEvent, OrderFetch, OrderWindow, headers
from shared.topics import Topics
from shared.tracing import traceparent


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
