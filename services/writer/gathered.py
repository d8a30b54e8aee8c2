"""The records of a batch, in the parts that become transactions. Pure."""

from dataclasses import dataclass, field

from aiokafka import ConsumerRecord, TopicPartition

from services.writer.batch import Batch, extend

# More is not taken for one batch, however large its records are (promise P10); 3 MB are a thousand orders.
_MOST_BYTES = 8 << 20


@dataclass(frozen=True)
class Part:
    """The records of a transaction, and what they come to."""

    records: list[ConsumerRecord] = field(default_factory=list)
    batch: Batch = field(default_factory=Batch)


class Gathered:
    """A batch in parts that are stored side by side: no seller's records are in two of them."""

    def __init__(self, parts: int) -> None:
        self.parts = [Part() for _ in range(parts)]
        self._part_of: dict[bytes | None, Part] = {}
        self.offsets: dict[TopicPartition, int] = {}
        """To commit once all parts are durable: one past the last record of each partition."""
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_large(self) -> bool:
        """Whether its records are as many bytes as one batch may hold."""
        return self._bytes >= _MOST_BYTES

    def add(self, record: ConsumerRecord, *, dead_letter_topic: str) -> None:
        """A record goes where the others with its key are, the first with a key into the part that holds least."""
        part = self._part_of.get(record.key)
        if part is None:
            part = self._part_of[record.key] = min(self.parts, key=lambda part: len(part.records))
        extend(part.batch, [record], dead_letter_topic=dead_letter_topic)
        part.records.append(record)
        self.offsets[TopicPartition(record.topic, record.partition)] = record.offset + 1
        self._count += 1
        self._bytes += len(record.value or b"")
