"""Publishing what may be too large for Kafka: the rest goes out, and something that fits in place of what does not.

Kafka's limit (`message.max.bytes`) is below what Allegro may send, and a record that it never takes must not stand in
front of all that come behind it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from shared.delivery import DeadLetter
from shared.kafka import UnsendableRecordError
from shared.logs import scrub
from shared.messages import OrderEvent, OrderFetch

_Record = TypeVar("_Record")

_NOWHERE = -1
# Allegro's ids have 36 characters. A longer text may be what makes the record too large.
_MAX_TEXT = 300


async def publish_each(
    publish: Callable[[Sequence[_Record]], Awaitable[None]],
    records: Sequence[_Record],
    instead: Callable[[_Record, UnsendableRecordError], Awaitable[None]],
) -> None:
    """Publish in order; what Kafka never takes is found by halving, and `instead` is done in its place.

    What stands before it may be published several times, as after any failure. Raises PublishFailedError, and what
    `instead` raises.
    """
    try:
        await publish(records)
    except UnsendableRecordError as error:
        if len(records) == 1:
            await instead(records[0], error)
            return
        middle = len(records) // 2
        await publish_each(publish, records[:middle], instead)
        await publish_each(publish, records[middle:], instead)


def letter_of(
    record: OrderEvent | OrderFetch,
    error: UnsendableRecordError,
    *,
    service: str,
    topic: str,
    headers: Sequence[tuple[str, bytes | None]],
) -> DeadLetter:
    """A dead letter for what never stood on a topic, with a record in its place that, replayed, has it looked at."""
    return DeadLetter(
        service=service,
        topic=topic,
        partition=_NOWHERE,
        offset=_NOWHERE,
        key=record.key,
        value=record.encode(),
        headers=tuple(headers),
        error_type=type(error).__name__,
        error=scrub(f"order {record.order_id}: {error}"),
    )


def shortened(text: str) -> str:
    """The text, or the beginning of one that is longer than any that Allegro's documentation knows."""
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "\N{HORIZONTAL ELLIPSIS}"
