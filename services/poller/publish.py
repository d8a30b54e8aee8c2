"""Work on its way to the enricher, and events on their way to the writer."""

import hashlib
import json
import logging
from collections.abc import Sequence
from uuid import UUID

from msgspec.structs import replace

from shared.allegro.bodies import UnreadablePart
from shared.delivery import DeadLetter
from shared.kafka import RecordProducer, UnsendableRecordError
from shared.logs import current_correlation_id
from shared.messages import OrderEvent, OrderFetch, OrderWindow, RawJson, headers
from shared.oversize import letter_of, publish_each, shortened
from shared.topics import Topics
from shared.tracing import traceparent

logger = logging.getLogger(__name__)

SERVICE = "poller"


class Publisher:
    """Publishes and waits for the acknowledgements; every method raises PublishFailedError."""

    def __init__(self, producer: RecordProducer, topics: Topics) -> None:
        self._producer = producer
        self._topics = topics

    async def events(self, records: Sequence[OrderEvent | OrderFetch], *, run_id: UUID | None = None) -> None:
        """Publish to `order-events`.

        In place of an event that is too large for Kafka goes one with a stand-in for its JSON, and a dead letter.
        """
        carried = headers(correlation_id=current_correlation_id(), run_id=run_id, traceparent=traceparent())

        async def publish(part: Sequence[OrderEvent | OrderFetch]) -> None:
            await self._producer.publish_all(
                self._topics.order_events, [(record.key, record.encode(), carried) for record in part]
            )

        async def instead(record: OrderEvent | OrderFetch, error: UnsendableRecordError) -> None:
            if isinstance(record, OrderFetch):
                raise error
            smaller = _with_a_stand_in(record)
            logger.error(
                "an event is too large for Kafka", extra={"event_id": record.event_id, "bytes": len(record.event)}
            )
            letter = letter_of(smaller, error, service=SERVICE, topic=self._topics.order_events, headers=carried)
            await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing()])
            await publish([smaller])

        await publish_each(publish, records, instead)

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

        async def publish(part: Sequence[DeadLetter]) -> None:
            await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing() for letter in part])

        async def instead(letter: DeadLetter, _error: UnsendableRecordError) -> None:
            await publish([letter.without_content()])

        await publish_each(publish, letters, instead)


def _with_a_stand_in(record: OrderEvent) -> OrderEvent:
    """The event with what is known of it; its JSON says what it stands for, so that nobody takes it for Allegro's.

    The chain goes on over it, and the order that it names is looked at, as for any other event.
    """
    too_long = [text for text in (record.order_id, record.revision) if text is not None and shortened(text) != text]
    order_id = None if record.order_id in too_long else record.order_id
    revision = None if record.revision in too_long else record.revision
    known = {
        "id": str(record.event_id),
        "type": shortened(record.event_type),
        "order": {"checkoutForm": {"id": order_id, "revision": revision}},
        "ordersBackup": {
            "notKept": "larger than Kafka takes",
            "bytes": len(record.event),
            "sha256": hashlib.sha256(record.event).hexdigest(),
        },
    }
    return replace(
        record,
        event_type=known["type"],
        order_id=order_id,
        revision=revision,
        event=RawJson(json.dumps(known).encode()),
    )
