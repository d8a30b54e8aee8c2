"""Lanes: the records of one token in order, those of different tokens at the same time (promise P4).

A partition holds many tokens. Reading it one record after the other would let a slow seller delay all of them, so
every token has a lane of its own, which exists only while it has work. Offsets are committed up to the first record
that is not done (low-water mark): what is redelivered after a crash was done once already, and doing it again has no
effect.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from prometheus_client import Gauge

from shared.delivery import commit, lags_told, poll
from shared.service import is_transient

logger = logging.getLogger(__name__)

Handler = Callable[[Sequence[ConsumerRecord]], Awaitable[None]]
"""Does the work of some records of one token; when it returns, their effect is durable."""

IN_HAND = Gauge(
    "orders_backup_enricher_records_in_hand",
    "Records taken from Kafka whose effect is not durable yet: they wait for limits, for Allegro, or behind others.",
    ["topic"],
)

_COMMIT_INTERVAL_SECONDS = 0.5
_POLL_TIMEOUT_MS = 200
_MAX_POLL_RECORDS = 500
# A partition is paused at the first number of unfinished records and resumed below the second (promise P10).
_PAUSE_AT = 2000
_RESUME_BELOW = 1000
_FIRST_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 30.0
_PAUSE_AFTER_BUG_SECONDS = 30.0


class Ownership:
    """One ownership of one partition: which offsets are unfinished, and up to where all are done.

    A rebalance ends it for good; offsets of an ended ownership are never committed, Kafka would take them backwards.
    """

    def __init__(self) -> None:
        self._pending: deque[int] = deque()
        self._done: set[int] = set()
        self.committable: int | None = None
        self.committed: int | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, offset: int) -> None:
        self._pending.append(offset)
        self.idle.clear()

    def finish(self, offsets: Iterable[int]) -> None:
        self._done.update(offsets)
        while self._pending and self._pending[0] in self._done:
            offset = self._pending.popleft()
            self._done.discard(offset)
            self.committable = offset + 1
        if not self._pending:
            self.idle.set()

    @property
    def unfinished(self) -> int:
        return len(self._pending)


class _Lane:
    """The queue of one token on one partition, and the task that works it off."""

    def __init__(self) -> None:
        self.queue: deque[ConsumerRecord] = deque()
        self.task: asyncio.Task[None] | None = None


class Lanes(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Reads one topic and works it off in lanes, `max_batch` records of a lane at a time.

    `drain_seconds` is how long a rebalance waits for work in hand; what is not done by then is dropped here and
    comes again to the partition's new owner.
    """

    def __init__(
        self,
        open_consumer: Callable[[], AIOKafkaConsumer],
        topic: str,
        handler: Handler,
        *,
        max_batch: int,
        drain_seconds: float,
        progressed: Callable[[], None],
    ) -> None:
        self._open_consumer = open_consumer
        self._consumer: AIOKafkaConsumer | None = None
        self._topic = topic
        self._handler = handler
        self._max_batch = max_batch
        self._drain_seconds = drain_seconds
        self._progressed = progressed
        self._owned: dict[TopicPartition, Ownership] = {}
        self._lanes: dict[tuple[TopicPartition, bytes], _Lane] = {}
        self._paused: set[TopicPartition] = set()

    async def run(self) -> None:
        """Consume until cancelled; then finish what is in hand, commit, and leave the group."""
        consumer = self._consumer = self._open_consumer()
        consumer.subscribe([self._topic], listener=self)
        committer = asyncio.create_task(self._commit_regularly(), name=f"commit {self._topic}")
        try:
            await consumer.start()
            async with lags_told(consumer, self._tell):
                await self._take(consumer)
        finally:
            committer.cancel()
            await asyncio.gather(committer, return_exceptions=True)
            await self.on_partitions_revoked(list(self._owned))
            self._consumer = None
            await consumer.stop()

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            polled = await poll(consumer, timeout_ms=_POLL_TIMEOUT_MS, max_records=_MAX_POLL_RECORDS)
            self._progressed()
            for partition, records in polled.items():
                self._dispatch(partition, records)
            self._hold_back(consumer)

    @property
    def unfinished(self) -> Mapping[TopicPartition, int]:
        """Records taken and not done, by partition."""
        return {partition: ownership.unfinished for partition, ownership in self._owned.items()}

    # -- rebalancing

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        self._owned = {partition: Ownership() for partition in assigned}
        self._paused.clear()  # aiokafka forgets pauses at every rebalance

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        """Give work in hand a little time, drop the rest, commit what is done."""
        ending = {partition: self._owned[partition] for partition in revoked if partition in self._owned}
        if ending:
            waits = [asyncio.ensure_future(ownership.idle.wait()) for ownership in ending.values()]
            _, late = await asyncio.wait(waits, timeout=self._drain_seconds)
            for wait in late:
                wait.cancel()
        await self._drop_lanes(ending)
        await self._commit(ending)
        for partition in ending:
            self._owned.pop(partition, None)

    async def _drop_lanes(self, partitions: Mapping[TopicPartition, Ownership]) -> None:
        tasks = []
        for key, lane in list(self._lanes.items()):
            if key[0] in partitions:
                del self._lanes[key]
                if lane.task is not None:
                    lane.task.cancel()
                    tasks.append(lane.task)
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- taking records

    def _dispatch(self, partition: TopicPartition, records: Sequence[ConsumerRecord]) -> None:
        ownership = self._owned.get(partition)
        if ownership is None:
            return  # fetched before a rebalance took the partition away
        for record in records:
            ownership.add(record.offset)
            key = (partition, record.key or b"")
            lane = self._lanes.setdefault(key, _Lane())
            lane.queue.append(record)
            if lane.task is None:
                lane.task = asyncio.create_task(self._work(key, lane, ownership), name=f"lane {self._topic}")

    def _hold_back(self, consumer: AIOKafkaConsumer) -> None:
        for partition, ownership in self._owned.items():
            if partition not in self._paused and ownership.unfinished >= _PAUSE_AT:
                consumer.pause(partition)
                self._paused.add(partition)
            elif partition in self._paused and ownership.unfinished < _RESUME_BELOW:
                consumer.resume(partition)
                self._paused.discard(partition)

    # -- working

    async def _work(self, key: tuple[TopicPartition, bytes], lane: _Lane, ownership: Ownership) -> None:
        while lane.queue:
            records = [lane.queue.popleft() for _ in range(min(len(lane.queue), self._max_batch))]
            await self._until_done(records)
            ownership.finish(record.offset for record in records)
        # No await between the last look at the queue and this: a record cannot slip in between.
        lane.task = None
        self._lanes.pop(key, None)

    async def _until_done(self, records: Sequence[ConsumerRecord]) -> None:
        """Work until it succeeds: giving up would move the offset past records whose effect is not durable."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await self._handler(records)
            except Exception as error:
                if is_transient(error):
                    logger.warning("not done, trying again", extra={"error": repr(error), "retry_in_seconds": delay})
                else:  # a bug: this token waits until someone has looked, all others go on
                    delay = _PAUSE_AFTER_BUG_SECONDS
                    logger.exception("a lane stands still", extra={"topic": self._topic, "records": len(records)})
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_RETRY_SECONDS)

    # -- committing

    async def _commit_regularly(self) -> None:
        """In a task of its own: `getmany` blocks for the whole of a rebalance (tech notes on aiokafka)."""
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL_SECONDS)
            await self._commit(dict(self._owned))

    def _tell(self) -> None:
        IN_HAND.labels(self._topic).set(sum(self.unfinished.values()))

    async def _commit(self, owned: Mapping[TopicPartition, Ownership]) -> None:
        offsets = {
            partition: ownership.committable
            for partition, ownership in owned.items()
            if ownership.committable is not None and ownership.committable != ownership.committed
        }
        if self._consumer is not None:
            await commit(self._consumer, offsets)
        for partition, offset in offsets.items():
            owned[partition].committed = offset
