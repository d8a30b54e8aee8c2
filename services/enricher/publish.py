"""Results on their way to the writer, and unreadable records on their way to the dead letters."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from uuid import UUID

import msgspec
from aiokafka import ConsumerRecord

from shared.allegro.bodies import UnreadablePart
from shared.delivery import DeadLetter
from shared.kafka import RecordProducer, UnsendableRecordError
from shared.logs import current_correlation_id
from shared.messages import OrderFetch, OrderFetchFailed, OrderObserved, Record, WindowProgressed, headers
from shared.oversize import letter_of, publish_each, shortened
from shared.topics import Topics
from shared.tracing import traceparent

logger = logging.getLogger(__name__)

SERVICE = "enricher"


class Publisher:
    """Publishes and waits for the acknowledgement: only then may an input record count as done."""

    def __init__(self, producer: RecordProducer, topics: Topics) -> None:
        self._producer = producer
        self._topics = topics

    async def results(self, records: Iterable[Record], *, run_id: UUID | None = None) -> None:
        """Publish to `orders`, keyed by token; raises PublishFailedError.

        In place of an order that is too large for Kafka goes a look that failed for good, and a dead letter.
        """
        carried = headers(correlation_id=current_correlation_id(), run_id=run_id, traceparent=traceparent())

        async def publish(part: Sequence[Record]) -> None:
            await self._producer.publish_all(
                self._topics.orders, [(record.key, record.encode(), carried) for record in part]
            )

        async def instead(record: Record, error: UnsendableRecordError) -> None:
            match record:
                case OrderObserved():
                    await self._tell_too_large(record, error, carried)
                    await publish([_failed(record, error)])
                case WindowProgressed() if record.covered is not None:
                    # What it lists is too long: nothing is compared with it then.
                    await publish([msgspec.structs.replace(record, covered=None)])
                case _:
                    raise error

        await publish_each(publish, list(records), instead)

    async def _tell_too_large(
        self, record: OrderObserved, error: UnsendableRecordError, carried: Sequence[tuple[str, bytes | None]]
    ) -> None:
        order_id = shortened(record.order_id)
        logger.error("an order is too large for Kafka", extra={"order_id": order_id, "bytes": len(record.order)})
        look = OrderFetch(token_id=record.token_id, order_id=order_id, wanted_after=record.observed_at)
        letter = letter_of(look, error, service=SERVICE, topic=self._topics.order_events, headers=carried)
        await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing()])

    async def dead_letter(self, record: ConsumerRecord, error: Exception, *, attempts: int = 1) -> None:
        """Set a record aside as it came, with its cause; raises PublishFailedError."""
        await self._set_aside(DeadLetter.of(record, error, service=SERVICE, attempts=attempts))

    async def unreadable(self, record: ConsumerRecord, part: UnreadablePart) -> None:
        """Set aside an order of Allegro's answer that nobody can read: its bytes, where the record in hand stands.

        Raises PublishFailedError.
        """
        await self._set_aside(replace(DeadLetter.of(record, part.error, service=SERVICE), value=part.raw))

    async def _set_aside(self, letter: DeadLetter) -> None:
        """With the cause, one of the largest records is larger than may be: what is left of it then is its place."""
        try:
            await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing()])
        except UnsendableRecordError:
            await self._producer.publish_all(self._topics.dead_letters, [letter.without_content().outgoing()])


def _failed(record: OrderObserved, error: UnsendableRecordError) -> OrderFetchFailed:
    """What the writer is told: a walk goes on behind it, nothing is owed any more, the copy that we have stays."""
    return OrderFetchFailed(
        token_id=record.token_id,
        order_id=shortened(record.order_id),
        wanted_after=record.observed_at,
        attempts=1,
        error=f"{type(error).__name__}: {error}",
        requests=record.requests,
        place=record.place,
    )
