"""Lanes: the records of one token in order, those of different tokens at the same time (promise P4).

A partition holds many tokens. Reading it one record after the other would let a slow seller delay all of them, so
every token has a lane of its own, which exists only while it has work. Offsets are committed up to the first record
that is not done (low-water mark): what is redelivered after a crash was done once already, and doing it again has no
effect.

What may wait here is bounded (promise P10), and shared so that no number of sellers with long backlogs takes the room
of the others. What finds no room counts as done at once: it is owed in PostgreSQL (docs/architecture.md), and its lane
reads it from there, at the seller's own pace, when it has worked off what it holds.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from prometheus_client import Counter, Gauge

from shared.delivery import GroupConsumer, commit, join, poll, watched
from shared.service import is_transient

logger = logging.getLogger(__name__)

Handler = Callable[[Sequence[ConsumerRecord]], Awaitable[None]]
"""Does the work of some records of one token; when it returns, their effect is durable."""

IN_HAND = Gauge(
    "orders_backup_enricher_records_in_hand",
    "Records taken from Kafka whose effect is not durable yet: they wait for limits, for Allegro, or behind others.",
    ["topic"],
)
LEFT_TO_DATABASE = Counter(
    "orders_backup_enricher_records_left_to_database_total",
    "Records of sellers with long backlogs, whose orders are read from what the database knows is owed.",
    ["topic"],
)

_COMMIT_INTERVAL_SECONDS = 0.5
_POLL_TIMEOUT_MS = 200
_MAX_POLL_RECORDS = 500
# What may wait of a partition (promise P10), and the part of the room left that one lane may take: so some is always
# left for another. A seller without a lane gets one beyond that; only so many of them pause the partition.
_ROOM = 300
_SHARE_OF_ONE = 4
_PAUSE_AT = 2 * _ROOM
_RESUME_BELOW = _PAUSE_AT - _ROOM // 2
# A record that is stuck holds the committed offset back so far and no farther: all that is done behind it is done
# again after a restart. It is owed in the database like any other, whatever Kafka knows.
_MOST_BEHIND = 20_000
_FIRST_RETRY_SECONDS = 0.5
_MAX_RETRY_SECONDS = 30.0
_PAUSE_AFTER_BUG_SECONDS = 30.0
# The writer may be slower than we are: what is owed is looked for until it must have been written, or sent out again;
# soon after something was found, and ever less often where nothing is.
_SETTLE_SECONDS = 150.0
_SHORTEST_LOOK_SECONDS = 0.2
_LONGEST_LOOK_SECONDS = 5.0

_Result = TypeVar("_Result")


LaneKey = tuple[TopicPartition, bytes]
"""A partition and the key of one token's records on it."""


class Owed(Protocol):
    """What PostgreSQL knows is owed to a token, as records."""

    async def __call__(self, lane: LaneKey, after: Any, lanes: int) -> tuple[Sequence[ConsumerRecord], Any]:
        """The part after a place (None: the first), and the place of the next one; without records it was the last.

        So many `lanes` ask for theirs, and share the memory for it.
        """


@dataclass(frozen=True)
class Work:
    """How the records of one topic are worked off, `max_batch` of a lane at a time.

    `drain_seconds` is how long a rebalance waits for work in hand; what is not done by then is dropped here and
    comes again to the partition's new owner. Without `owed` all records wait here.
    """

    handler: Handler
    max_batch: int
    drain_seconds: float
    owed: Owed | None = None


class Ownership:
    """One ownership of one partition: how much is unfinished, and up to where all is done.

    A rebalance ends it for good; offsets of an ended ownership are never committed, Kafka would take them backwards.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, None] = OrderedDict()
        """Offsets that are not done, ascending, but for those that nobody waits for any more."""
        self._next = 0
        self.unfinished = 0
        """Records taken and not done. Those done behind a record that is not are none of them."""
        self.committed: int | None = None
        """The offset that Kafka knows, as far as we know; where the ownership began needs no telling."""
        self.idle = asyncio.Event()
        self.idle.set()

    def add(self, offset: int) -> None:
        """Take a record; offsets ascend."""
        if self.committed is None:
            self.committed = offset
        self._waiting[offset] = None
        self._next = offset + 1
        self.unfinished += 1
        self.idle.clear()
        while next(iter(self._waiting)) < self._next - _MOST_BEHIND:
            self._waiting.popitem(last=False)

    def finish(self, offsets: Iterable[int]) -> None:
        """The effect of these records is durable."""
        for offset in offsets:
            self._waiting.pop(offset, None)
            self.unfinished -= 1
        if not self.unfinished:
            self.idle.set()

    @property
    def committable(self) -> int | None:
        """The offset to commit: the first that is not done; None where nothing has been taken."""
        return None if self.committed is None else next(iter(self._waiting), self._next)

    def has_room(self, waiting: int) -> bool:
        """Whether a lane in which so many records wait may take another one."""
        return waiting < (_ROOM - self.unfinished) // _SHARE_OF_ONE


class _Lane:
    """The queue of one token on one partition, and the task that works it off."""

    def __init__(self) -> None:
        self.queue: deque[ConsumerRecord] = deque()
        self.task: asyncio.Task[None] | None = None
        self.came = asyncio.Event()
        self.overflowed_at: float | None = None
        """When a record was last left to the database; None: nothing is to be read from there."""


class Lanes(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Reads topics as one member of a group and works them off in lanes.

    One member, so that a token's partitions of all topics are one process's (range assignment): its limits are counted
    there (shared.limits.turns).
    """

    def __init__(
        self,
        open_consumer: Callable[[], GroupConsumer],
        works: Mapping[str, Work],
        *,
        progressed: Callable[[], None],
    ) -> None:
        self._open_consumer = open_consumer
        self._consumer: GroupConsumer | None = None
        self._works = works
        self._progressed = progressed
        self._owned: dict[TopicPartition, Ownership] = {}
        self._lanes: dict[LaneKey, _Lane] = {}
        self._paused: set[TopicPartition] = set()

    async def run(self) -> None:
        """Consume until cancelled; then finish what is in hand, commit, and leave the group."""
        consumer = self._consumer = self._open_consumer()
        consumer.subscribe(list(self._works), listener=self)
        committer = asyncio.create_task(self._commit_regularly(), name="commit")
        try:
            await join(consumer)
            async with watched(consumer, self._tell):
                await self._take(consumer)
        finally:
            committer.cancel()
            await asyncio.gather(committer, return_exceptions=True)
            await self.on_partitions_revoked(list(self._owned))
            self._consumer = None
            await consumer.stop()

    async def _take(self, consumer: GroupConsumer) -> None:
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
        await asyncio.gather(
            *(
                self._drain({partition: owned for partition, owned in ending.items() if partition.topic == topic})
                for topic in self._works
            )
        )
        await self._commit(ending)
        for partition in ending:
            self._owned.pop(partition, None)

    async def _drain(self, partitions: Mapping[TopicPartition, Ownership]) -> None:
        """End the work on these partitions of one topic."""
        if partitions:
            seconds = max(self._works[partition.topic].drain_seconds for partition in partitions)
            waits = [asyncio.ensure_future(ownership.idle.wait()) for ownership in partitions.values()]
            _, late = await asyncio.wait(waits, timeout=seconds)
            for wait in late:
                wait.cancel()
        await self._drop_lanes(partitions)

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
        work = self._works[partition.topic]
        for record in records:
            ownership.add(record.offset)
            key = (partition, record.key or b"")
            lane = self._lanes.setdefault(key, _Lane())
            if work.owed is not None and lane.task is not None and not ownership.has_room(len(lane.queue)):
                lane.overflowed_at = time.monotonic()
                ownership.finish([record.offset])
                LEFT_TO_DATABASE.labels(partition.topic).inc()
                continue
            lane.queue.append(record)
            lane.came.set()
            if lane.task is None:
                lane.task = asyncio.create_task(self._work(key, lane, ownership), name=f"lane {partition.topic}")

    def _hold_back(self, consumer: GroupConsumer) -> None:
        for partition, ownership in self._owned.items():
            if partition not in self._paused and ownership.unfinished >= _PAUSE_AT:
                consumer.pause(partition)
                self._paused.add(partition)
            elif partition in self._paused and ownership.unfinished < _RESUME_BELOW:
                consumer.resume(partition)
                self._paused.discard(partition)

    # -- working

    async def _work(self, key: LaneKey, lane: _Lane, ownership: Ownership) -> None:
        work = self._works[key[0].topic]
        await self._work_off(work, lane, ownership)
        pause = _SHORTEST_LOOK_SECONDS
        while lane.overflowed_at is not None:
            is_last = time.monotonic() > lane.overflowed_at + _SETTLE_SECONDS
            found = await self._catch_up(work, key, lane, ownership)
            pause = _SHORTEST_LOOK_SECONDS if found else min(pause * 2, _LONGEST_LOOK_SECONDS)
            if is_last:
                lane.overflowed_at = None
            else:
                await _wait(lane.came, pause)
            await self._work_off(work, lane, ownership)
        # No await between the last look at the queue and this: a record cannot slip in between.
        lane.task = None
        self._lanes.pop(key, None)

    async def _work_off(self, work: Work, lane: _Lane, ownership: Ownership) -> None:
        """Work until no record waits."""
        while lane.queue:
            records = [lane.queue.popleft() for _ in range(min(len(lane.queue), work.max_batch))]
            await self._until_done(partial(work.handler, records))
            ownership.finish(record.offset for record in records)
        lane.came.clear()

    async def _catch_up(self, work: Work, key: LaneKey, lane: _Lane, ownership: Ownership) -> bool:
        """Work off what the database knows is owed, and say whether there was anything; whatever comes meanwhile is
        newer, and goes first."""
        assert work.owed is not None  # noqa: S101 - nothing else overflows
        place: Any = None
        found = False
        while True:
            lanes = sum(one.overflowed_at is not None for one in self._lanes.values())
            records, place = await self._until_done(partial(work.owed, key, place, lanes))
            if not records:
                return found
            found = True
            await self._until_done(partial(work.handler, records))
            await self._work_off(work, lane, ownership)

    async def _until_done(self, step: Callable[[], Awaitable[_Result]]) -> _Result:
        """Work until it succeeds: giving up would move the offset past records whose effect is not durable."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await step()
            except Exception as error:
                if is_transient(error):
                    logger.warning("not done, trying again", extra={"error": repr(error), "retry_in_seconds": delay})
                else:  # a bug: this token waits until someone has looked, all others go on
                    delay = _PAUSE_AFTER_BUG_SECONDS
                    logger.exception("a lane stands still")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _MAX_RETRY_SECONDS)

    # -- committing

    async def _commit_regularly(self) -> None:
        """In a task of its own: `getmany` blocks for the whole of a rebalance (tech notes on aiokafka)."""
        while True:
            await asyncio.sleep(_COMMIT_INTERVAL_SECONDS)
            await self._commit(dict(self._owned))

    def _tell(self) -> None:
        for topic in self._works:
            unfinished = (number for partition, number in self.unfinished.items() if partition.topic == topic)
            IN_HAND.labels(topic).set(sum(unfinished))

    async def _commit(self, owned: Mapping[TopicPartition, Ownership]) -> None:
        offsets = {
            partition: offset
            for partition, ownership in owned.items()
            if (offset := ownership.committable) is not None and offset != ownership.committed
        }
        if self._consumer is not None and await commit(self._consumer, offsets):
            for partition, offset in offsets.items():
                owned[partition].committed = offset


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
