"""Records into aiokafka's batches, all partitions at once, without a future and a place in a list for each record.

`AIOKafkaProducer.send` keeps books on every record, and lets every partition's batch linger by itself, so that one asks
the broker for each of them. We wait for all of a publication anyway: a batch's one acknowledgement is enough, and what
was put within the same few milliseconds goes out in one request, whatever its partition.

While Kafka does not answer, batches queue up. One that all its publications have given up leaves the queue: they are
repeated, so their copies would pile up for as long as that lasts, and all go out at its end.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed
from aiokafka.partitioner import DefaultPartitioner

from shared.lately import Lately

OutgoingRecord = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]
"""Key, value, headers; not both of key and value are null."""

# How long records are gathered before they go out: what matters is when little comes that it goes soon, and when much
# comes that there are few requests, of ours and of those who read. Much is twice what Allegro lets one client id have
# by single fetches, 150 a second, and for some time: a few events of one seller are none of it.
_SHORT_LINGER_SECONDS = 0.01
_LONG_LINGER_SECONDS = 0.04
_MANY_RECORDS = 200
_HALF_LIFE_SECONDS = 0.5
_KNOWN_KEYS = 20_000
_partitioner = DefaultPartitioner()


@lru_cache(maxsize=_KNOWN_KEYS)
def _partition_of(key: bytes, partitions: int) -> int:
    """As every Kafka client's default has it; remembered, since the hash is computed in Python."""
    return int(_partitioner(key, range(partitions), range(partitions)))


class Batch:
    """Records of one partition; `acknowledged` ends when Kafka has all of them, or with aiokafka's error.

    Several publications share it: nobody may cancel it, but each may give it up. What all of them gave up before it was
    aiokafka's never goes out.
    """

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._queued: asyncio.Task[None] | None = None
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.awaited = 0
        """Publications that wait for it."""

    def add(self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> bool:
        """Whether the record found room; the first one always does."""
        return self._builder.append(timestamp=None, key=key, value=value, headers=headers) is not None

    def depart(
        self, producer: AIOKafkaProducer, topic: str, partition: int, turn: asyncio.Lock
    ) -> "asyncio.Task[None]":
        """Begin to send it; no record may be added from now on."""
        self._queued = asyncio.create_task(self._send(producer, topic, partition, turn), name=f"send to {topic}")
        return self._queued

    async def _send(self, producer: AIOKafkaProducer, topic: str, partition: int, turn: asyncio.Lock) -> None:
        """Hand the batch over in its turn: aiokafka lets a later one overtake else."""
        try:
            async with turn:
                self._queued = None
                acknowledgement = await producer.send_batch(self._builder, topic, partition=partition)
            await acknowledgement
        except asyncio.CancelledError:  # by `Batches.close`, or by `give_up` when nobody is left to be told
            self.fail(ProducerClosed())
        except Exception as error:  # noqa: BLE001 - whoever published has to hear of it, whatever it is
            self.fail(error)
        else:
            self.acknowledged.set_result(None)

    def give_up(self) -> None:
        """One publication waits no more; the last one takes the batch out of the queue, if it still is in it."""
        self.awaited -= 1
        if not self.awaited and self._queued is not None:
            self._queued.cancel()

    def fail(self, error: Exception) -> None:
        """End without an acknowledgement."""
        self.acknowledged.set_exception(error)
        self.acknowledged.exception()  # a publication that was given up leaves nobody to look at it


async def ended(batches: Collection[Batch]) -> None:
    """Wait until each of a publication's batches is acknowledged or has failed; gives them up when it is cancelled."""
    try:
        # Waiting does not own them: others wait for the same batches, whatever becomes of this publication.
        await asyncio.wait([batch.acknowledged for batch in batches])
    except asyncio.CancelledError:
        for batch in batches:
            batch.give_up()
        raise


class FewerPartitionsError(KafkaError):  # type: ignore[misc]  # aiokafka is untyped
    """A topic has fewer partitions than it had: a key would have another one, and with it another order.

    Kafka never takes partitions away. The embedded broker shows a topic that it is about to create with some of them
    (chaos, seed 7); a topic that was made anew with fewer on purpose needs new processes.
    """


class Batches:
    """What one producer gathers for a moment before it goes out."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._lately = Lately(_HALF_LIFE_SECONDS)
        """Records that went out."""
        self._gathered = 0
        self._filling: dict[tuple[str, int], Batch] = {}
        self._full: list[tuple[tuple[str, int], Batch]] = []
        self._partitions: dict[str, int] = {}
        """The most that each topic ever had."""
        self._turns: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._departure: asyncio.TimerHandle | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def put(self, topic: str, records: Iterable[OutgoingRecord]) -> set[Batch]:
        """Take the records in order; returns the batches they are in, to wait for with `ended`.

        Raises aiokafka's errors if the topic's partitions are not known in time, and FewerPartitionsError.
        """
        partitions = await self._count_partitions(topic)
        batches = set()
        for record in records:
            batches.add(self._put(topic, partitions, *record))
            self._gathered += 1
        for batch in batches:
            batch.awaited += 1
        if self._departure is None:
            loop = asyncio.get_running_loop()
            is_much = self._lately.amount(loop.time()) >= _MANY_RECORDS
            self._departure = loop.call_later(_LONG_LINGER_SECONDS if is_much else _SHORT_LINGER_SECONDS, self._depart)
        return batches

    async def _count_partitions(self, topic: str) -> int:
        partitions = len(await self._producer.partitions_for(topic))
        known = self._partitions.get(topic, 0)
        if partitions < known:
            await self._producer.client.force_metadata_update()
            raise FewerPartitionsError(f"{topic} has {partitions} partitions, and had {known}")
        self._partitions[topic] = partitions
        return partitions

    def _put(
        self,
        topic: str,
        partitions: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
    ) -> Batch:
        place = topic, 0 if key is None else _partition_of(key, partitions)
        batch = self._filling.get(place)
        if batch is None or not batch.add(key, value, headers):
            if batch is not None:
                self._full.append((place, batch))
            batch = self._filling[place] = Batch(self._producer.create_batch())
            batch.add(key, value, headers)
        return batch

    def _depart(self) -> None:
        self._departure = None
        self._lately.add(self._gathered, asyncio.get_running_loop().time())
        self._gathered = 0
        leaving = [*self._full, *self._filling.items()]
        self._full.clear()
        self._filling.clear()
        for (topic, partition), batch in leaving:
            if not batch.awaited:
                continue
            task = batch.depart(self._producer, topic, partition, self._turns[topic, partition])
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Give up what is not acknowledged: whoever waits for it gets ProducerClosed."""
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None
        for batch in [*(batch for _, batch in self._full), *self._filling.values()]:
            batch.fail(ProducerClosed())
        self._full.clear()
        self._filling.clear()
        await asyncio.sleep(0)  # a task that has not begun could not tell of its end
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
