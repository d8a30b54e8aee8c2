"""The writer's loop: poll, store until durable, commit offsets; what cannot be stored is found and set aside.

While PostgreSQL works on one batch, the next one is fetched and decoded; batches are stored one after the other. While
batches are large, the two halves of each are stored side by side: a seller's records are all in one of them, so neither
waits for a row of the other, and PostgreSQL has two processes to work with.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain

from aiokafka import ConsumerRecord

from services.writer.batch import SERVICE, Batch, collect
from services.writer.gathered import Gathered, Part
from services.writer.metrics import Metrics
from services.writer.slices import slices
from services.writer.store import RefusedError, Store, Written
from services.writer.unstorable import Storable, stand_ins
from shared.delivery import DeadLetter, GroupConsumer, RebalanceLog, commit, join, poll, watched
from shared.kafka import RecordProducer, UnsendableRecordError
from shared.lately import Lately
from shared.messages import correlation_id_of, token_of, traceparent_of
from shared.service import is_transient
from shared.together import together
from shared.topics import Topics
from shared.tracing import add_span, is_on

logger = logging.getLogger(__name__)

_POLL_TIMEOUT_MS = 200
# From the beginning of a batch to that of the next one, unless that is full; longer while much is to be stored, since a
# batch costs as much for fifty orders as for one. What Allegro lets one client id have by single fetches, with its
# events, does not come to so many records for long: nobody who is up to date waits for it.
_SHORT_BATCH_SECONDS = 0.03
_LONG_BATCH_SECONDS = 0.1
_LONG_FROM_RECORDS = 250
_HALF_LIFE_SECONDS = 0.5
# What Allegro lets one client id have comes to a tenth of it in the time of a batch: so many are a bulk load.
_MANY_RECORDS = 100
# Transactions at a time where a batch is this large: the halves of a smaller one cost more than they save. Three were
# no faster on two cores.
_PARTS_OF_LARGE = 2
_LARGE_RECORDS = 1000
# While a batch is being stored, more is taken and decoded this often.
_LOOK_SECONDS = 0.02
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 15.0


class Writer:
    """Consumes `order-events`, `orders` and `dead-letters` into the database, `max_records` at a time.

    `stored` is called after each batch that has become durable, unless a full one waits behind it.
    """

    def __init__(
        self,
        open_consumer: Callable[[], GroupConsumer],
        store: Store,
        producer: RecordProducer,
        topics: Topics,
        metrics: Metrics,
        *,
        max_records: int,
        progressed: Callable[[], None],
        stored: Callable[[], None],
    ) -> None:
        self._open_consumer = open_consumer
        self._store = store
        self._producer = producer
        self._topics = topics
        self._metrics = metrics
        self._max_records = max_records
        self._progressed = progressed
        self._stored = stored
        self._free = asyncio.Event()
        self._free.set()
        self._free_at = 0.0
        self._lately = Lately(_HALF_LIFE_SECONDS)
        """Records that were to be stored."""
        self._was_large = False
        """Whether the last batch was worth two transactions: the next one probably is."""
        self.is_behind = False
        """Whether the last batch was a large one: there is more to store, and that comes before everything else."""

    async def run(self) -> None:
        """Consume until cancelled. A batch in hand is then dropped: it was not committed and comes again."""
        consumer = self._open_consumer()
        topics = [self._topics.order_events, self._topics.orders, self._topics.dead_letters]
        self._free.set()  # an error may have ended the run before in the middle of a batch
        consumer.subscribe(topics, listener=RebalanceLog())
        try:
            await join(consumer)
            async with watched(consumer):
                await self._consume(consumer)
        finally:
            await consumer.stop()

    async def _consume(self, consumer: GroupConsumer) -> None:
        following = asyncio.create_task(self._gather(consumer))
        try:
            while True:
                gathered = await following
                following = asyncio.create_task(self._gather(consumer))
                if gathered:
                    await self._store_and_commit(consumer, gathered)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _store_and_commit(self, consumer: GroupConsumer, gathered: Gathered) -> None:
        self._free.clear()
        now = time.monotonic()
        self._lately.add(len(gathered), now)
        free_at = now + (_LONG_BATCH_SECONDS if self._is_much(now) else _SHORT_BATCH_SECONDS)
        await together(self._until_durable(part) for part in gathered.parts if part.records)
        if not self.is_behind:
            self._stored()
        await commit(consumer, gathered.offsets)
        self._free_at = free_at
        self._free.set()

    async def _gather(self, consumer: GroupConsumer) -> Gathered:
        """What there is; and while the batch before is not done, or began just now, what comes until then.

        A batch costs the same whether it holds one record or fifty. So under load it takes what comes meanwhile,
        and a record that comes to an idle writer waits for nothing.
        """
        gathered = Gathered(_PARTS_OF_LARGE if self._was_large else 1)
        await self._take(consumer, gathered, timeout_ms=_POLL_TIMEOUT_MS)
        while 0 < len(gathered) < self._max_records and not gathered.is_large and (wait := self._busy_seconds()):
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._free.wait()
                    await asyncio.sleep(self._busy_seconds())
            await self._take(consumer, gathered, timeout_ms=0)
        self._was_large = gathered.is_large or len(gathered) >= min(_LARGE_RECORDS, self._max_records)
        self.is_behind = gathered.is_large or len(gathered) >= min(_MANY_RECORDS, self._max_records)
        return gathered

    def _is_much(self, now: float) -> bool:
        return self._lately.amount(now) >= _LONG_FROM_RECORDS

    def _busy_seconds(self) -> float:
        """How long not to look whether there is more; 0 if the next batch may be stored at once."""
        if self._free.is_set():
            return max(self._free_at - time.monotonic(), 0.0)
        return _LOOK_SECONDS

    async def _take(self, consumer: GroupConsumer, gathered: Gathered, *, timeout_ms: int) -> None:
        """Add the records of one poll."""
        room = self._max_records - len(gathered)
        polled = await poll(consumer, timeout_ms=timeout_ms, max_records=room)
        if self._free.is_set():  # else what has to go on is the batch that is being stored
            self._progressed()
        for records in slices(chain.from_iterable(polled.values())):
            for record in records:
                gathered.add(record, dead_letter_topic=self._topics.dead_letters)
            await asyncio.sleep(0)  # else PostgreSQL waits for the batch before this one

    async def _until_durable(self, part: Part) -> None:
        """Store the records; while PostgreSQL or Kafka is away, wait: nothing is set aside for that."""
        delay = _FIRST_RETRY_SECONDS
        started_ns = time.time_ns()
        while True:
            try:
                with self._metrics.batch_seconds.time():
                    written = await self._store_all(part)
            except Exception as error:
                if not is_transient(error):
                    raise
                self._metrics.waits.inc()
                logger.warning("not stored, waiting", extra={"error": repr(error), "retry_in_seconds": delay})
                await asyncio.sleep(delay)
                self._progressed()  # waiting is what it should do now
                delay = min(delay * 2, _LONGEST_RETRY_SECONDS)
            else:
                self._metrics.observe(written, len(part.records))
                _say_stored(part.records)
                _trace_stored(part.records, started_ns)
                return

    async def store(self, records: Sequence[ConsumerRecord]) -> Written:
        """Store the records, all in one transaction if the database takes them.

        If it refuses, the guilty record is found by halving; the rest lands. Raises only what is worth waiting for.
        """
        return await self._store_all(Part(list(records), collect(records, dead_letter_topic=self._topics.dead_letters)))

    async def _store_all(self, part: Part) -> Written:
        records, batch = part.records, part.batch
        try:
            return await self._apply(batch)
        except RefusedError as refusal:
            if len(records) == 1:
                return await self._set_aside(records[0], batch, refusal)
        middle = len(records) // 2
        return await self.store(records[:middle]) + await self.store(records[middle:])

    async def _apply(self, batch: Batch, storable: Mapping[bytes, Storable] | None = None) -> Written:
        written = await self._store.apply(batch, storable=storable)
        self._progressed()
        await asyncio.gather(*(self._tell(letter) for letter in batch.unreadable))
        return written

    async def _tell(self, letter: DeadLetter) -> None:
        """Others read the topic; what matters is stored by now."""
        try:
            await self._producer.publish_all(self._topics.dead_letters, [letter.outgoing()])
        except UnsendableRecordError as error:
            logger.warning("dead letter not published, only stored", extra={"error": str(error)})

    async def _set_aside(self, record: ConsumerRecord, batch: Batch, refusal: RefusedError) -> Written:
        """Store a document that jsonb cannot hold beside its exact bytes; what is refused still is a dead letter.

        Walk and cursor go on behind it: they would else read the same again and again, to stop here.
        """
        for storable in _stand_ins(batch):
            try:
                return await self._apply(batch, storable)
            except RefusedError as error:
                refusal = error
        logger.error("record refused by the database", extra={"topic": record.topic, "offset": record.offset})
        letter = DeadLetter.of(record, refusal, service=SERVICE)
        bare = letter.without_headers()
        for rest in (batch.without_documents(letter), Batch(unreadable=[letter]), batch.without_documents(bare)):
            with suppress(RefusedError):
                return await self._apply(rest)
        # Nothing is left in it that could be refused: a record that lands nowhere would come again for ever.
        return await self._apply(Batch(unreadable=[bare]))


def _say_stored(records: Sequence[ConsumerRecord]) -> None:
    """One line for each request or poll whose records are durable now: who follows its id finds the end of the way."""
    counts = Counter((correlation_id_of(record.headers), record.key) for record in records)
    for (identifier, key), number in counts.items():
        logger.info("stored", extra={"correlation_id": identifier, "token_id": token_of(key), "records": number})


def _trace_stored(records: Sequence[ConsumerRecord], started_ns: int) -> None:
    """A batch belongs to many traces: each gets a span of its own for the transaction that they share."""
    if not is_on():
        return
    parents = Counter(traceparent_of(record.headers) for record in records)
    for parent, number in parents.items():
        if parent is not None:
            numbers = {"messaging.batch.message_count": number, "orders_backup.transaction_records": len(records)}
            add_span("store", numbers, kind="consumer", parent=parent, started_ns=started_ns)


def _stand_ins(batch: Batch) -> list[Mapping[bytes, Storable]]:
    """What to store in place of the one document in this batch, in the order to try it."""
    documents: list[tuple[bytes, dict[str, str | None]]] = [
        (event.event, {"id": str(event.event_id), "type": event.event_type}) for event in batch.events.values()
    ]
    documents += [
        (seen.record.order, {"id": seen.record.order_id, "status": seen.facts.status})
        for seen in batch.observations.values()
    ]
    return [{raw: storable} for raw, summary in documents for storable in stand_ins(raw, summary=summary)]
