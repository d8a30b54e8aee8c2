"""How much is decoded without a pause. Pure.

A batch of some megabytes goes to PostgreSQL in many pieces, and each of them waits until the event loop is free: while
one batch is sent, the next one is decoded in slices of some tenths of a millisecond.
"""

from collections.abc import Iterable, Iterator

from aiokafka import ConsumerRecord

_SLICE_BYTES = 8 * 1024
# To decode a record costs as much as so many bytes, however small it is.
_SMALLEST_BYTES = 1024


def slices(records: Iterable[ConsumerRecord]) -> Iterator[list[ConsumerRecord]]:
    """The records in order; a slice ends with the record that fills it."""
    part: list[ConsumerRecord] = []
    size = 0
    for record in records:
        part.append(record)
        size += max(len(record.value or b""), _SMALLEST_BYTES)
        if size >= _SLICE_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
