"""The topic `order-state`: the latest state of every order, complete whatever becomes of Kafka (requirement D1).

Every statement that changes an order notes it in `order_state_outbox`, in the same transaction. One replica at a time
(an advisory lock) takes notes, publishes the orders *as they are now*, and removes the notes once Kafka has
acknowledged: so a record never shows an older state than the one before it. A publication that may have reached
Kafka, but whose transaction did not end, is noted again, since another replica may have gone on meanwhile.

Kafka may lose everything. A marker lies beside the topic: the offset that the group `order-state` has committed is the
number of the topic's generation. Kafka drops it together with the topic, and a broker without its data has none; where
it is not what PostgreSQL remembers, every order is published again, a batch at a time from where it stands. What else
was on its way is lost then, too: looks that are owed become due at once, and bulk loads as soon as they stand still.

A topic may be torn. The embedded broker (Tansu 0.6) takes records for a partition that it is about to create, sets its
end back to 0, refuses what comes next as an unknown error (an object of that offset exists), and puts what comes then
among the first ones, where no reader finds it, until it has come to where those end. So after an unknown error
everything is published from the beginning, to fill that place (it may have taken all orders), and again, to lie behind
it. PostgreSQL remembers how often, since this process may end before.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import UnknownError

from services.writer.metrics import Metrics
from shared.kafka import MAX_RECORD_BYTES, PublishFailedError, RecordProducer
from shared.kafka_connection import connection_options
from shared.logs import current_correlation_id
from shared.messages import OrderState, RawJson, headers
from shared.settings import KafkaSettings

logger = logging.getLogger(__name__)

BATCH_ORDERS = 500
# More is not taken for one turn, however large the orders are (promise P10); 500 of them are 1.5 MB.
BATCH_BYTES = 8 << 20
_GROUP = "order-state"
_MARKER_SECONDS = 10.0
# A topic that is new may still be about to be created: it is filled some seconds after it was first seen. What the
# embedded broker takes before is hidden when it creates the topic, and only a later record of a partition would tell.
_SETTLE_SECONDS = 4.0
# Kafka forgets what a group without members has committed after seven days (`offsets.retention.minutes`).
_RENEW_MARKER_SECONDS = 6 * 3600.0
_LAST_TURN_SECONDS = 10.0
# What a record has besides the order.
_ENVELOPE_BYTES = 64 * 1024

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('orders_backup_order_state', 0))"

_STATE = """
id, user_token_id, allegro_order_id, observed_at, updated_at, gone_at, gone_reason, successor_order_id
"""

# The first candidates, until one of them makes their documents $2 bytes or more: so there always is one. PostgreSQL
# unpacks them one after the other, each once: without `OFFSET 0` it does so for the size, and again for the document.
# What is stored may be compressed to a hundredth, so its size is no bound for us; but it is known without unpacking,
# and what lies behind $2 bytes of it stays packed.
_FITTING = """
measured AS (
    SELECT *, lead(true, 1, false) OVER earlier AS is_followed,
           coalesce(sum(pg_column_size(order_data) + coalesce(pg_column_size(order_raw), 0)) OVER earlier, 0)
               AS stored_earlier
      FROM candidates
    WINDOW earlier AS (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), documents AS (
    SELECT *, coalesce(order_raw, convert_to(order_data::text, 'UTF8')) AS document
      FROM measured WHERE stored_earlier < $2 ORDER BY place OFFSET 0
), fitting AS (
    SELECT *, coalesce(sum(octet_length(document)) OVER earlier, 0) AS bytes_earlier
      FROM documents
    WINDOW earlier AS (ORDER BY place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
)
"""

# One statement is one snapshot: whoever sees a note sees the order as it was left by the transaction that made it.
_CHANGED = f"""
WITH oldest AS (
    SELECT id, user_token_id, allegro_order_id, noted_at FROM order_state_outbox ORDER BY id LIMIT $1
), notes AS (
    SELECT user_token_id, allegro_order_id, array_agg(id) AS ids, min(id) AS place, min(noted_at) AS noted_at
      FROM oldest GROUP BY user_token_id, allegro_order_id
), candidates AS (
    SELECT n.ids, n.place, n.noted_at, o.* FROM notes n JOIN orders o USING (user_token_id, allegro_order_id)
), {_FITTING}
SELECT ids, extract(epoch FROM clock_timestamp() - noted_at)::float8 AS waited, {_STATE}, document, is_followed
  FROM fitting WHERE bytes_earlier < $2 ORDER BY place
"""  # noqa: S608 - a constant

_AFTER = f"""
WITH candidates AS (
    SELECT id AS place, * FROM orders WHERE id > $3 ORDER BY id LIMIT $1
), {_FITTING}
SELECT {_STATE}, document, is_followed FROM fitting WHERE bytes_earlier < $2 ORDER BY place
"""  # noqa: S608 - a constant

_DONE = "DELETE FROM order_state_outbox WHERE id = ANY($1::bigint[])"

_NOTE = """
INSERT INTO order_state_outbox (user_token_id, allegro_order_id) SELECT * FROM unnest($1::bigint[], $2::text[])
"""

# A republication that was asked for meanwhile has set the place back, and counts.
_MOVE = "UPDATE order_state_topic SET republish_after = $2 WHERE republish_after = $1"

_TOPIC = "SELECT generation, republish_after, passes_left FROM order_state_topic"

# Two besides the one that begins now: what had been taken before may be all orders, and changes of some.
_TORN = "UPDATE order_state_topic SET republish_after = 0, passes_left = 2"

_AGAIN = "UPDATE order_state_topic SET republish_after = 0, passes_left = passes_left - 1"

_NEW_GENERATION = "UPDATE order_state_topic SET generation = $1, republish_after = 0"

# What was tried in vain waits for its next attempt in the table, whatever becomes of Kafka. Rows are locked in the
# order in which batches lock them.
_OWED_AT_ONCE = """
WITH lost AS (
    SELECT user_token_id, allegro_order_id FROM pending_fetches
     WHERE attempts = 0 ORDER BY user_token_id, allegro_order_id FOR UPDATE
)
UPDATE pending_fetches p SET next_attempt_at = now()
  FROM lost WHERE p.user_token_id = lost.user_token_id AND p.allegro_order_id = lost.allegro_order_id
"""

# As if it had been sent out once: the poller's patience with a walk grows with each time that it comes to nothing.
_WALKS_SOON = """
WITH lost AS (SELECT run_id FROM run_windows WHERE NOT finished ORDER BY run_id FOR UPDATE)
UPDATE run_windows w SET published_at = w.progress_at FROM lost WHERE w.run_id = lost.run_id
"""


class TopicMarker:
    """The number beside the topic that vanishes with it: an offset committed for the topic's first partition.

    Both methods raise aiokafka's errors, and TimeoutError, while Kafka is away or the topic does not exist.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._partition = TopicPartition(settings.topics.order_state, 0)

    async def read(self) -> int | None:
        """The generation of the topic as Kafka has it; None where it has none."""
        async with self._consumer() as consumer:
            generation: int | None = await consumer.committed(self._partition)
            return generation

    async def write(self, generation: int) -> None:
        async with self._consumer() as consumer:
            await consumer.commit({self._partition: generation})

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings),
            group_id=f"{self._settings.kafka_topic_prefix}{_GROUP}",
            enable_auto_commit=False,
        )
        consumer.assign([self._partition])
        consumer.pause(self._partition)  # no record is wanted, only what is committed
        try:
            async with asyncio.timeout(_MARKER_SECONDS):
                await consumer.start()
                yield consumer
        finally:
            await consumer.stop()


class OrderStates:
    """Publishes what changed, and everything again where Kafka does not have it."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        producer: RecordProducer,
        settings: KafkaSettings,
        metrics: Metrics,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        settle_seconds: float = _SETTLE_SECONDS,
    ) -> None:
        self._pool = pool
        self._producer = producer
        self._topic = settings.topics.order_state
        self._settle_seconds = settle_seconds
        self._new_since: float | None = None
        """When the topic was first seen not to be the one that was filled."""
        self._marker = TopicMarker(settings)
        self._metrics = metrics
        self._monotonic = monotonic
        self._renew_at = monotonic() + _RENEW_MARKER_SECONDS
        self._doubtful: set[tuple[int, str]] = set()
        """Orders whose publication may be on its way, by a transaction that did not end well."""
        self._saw_a_tear = False
        """Kafka answered with an unknown error, which PostgreSQL does not know yet."""

    async def check_topic(self) -> None:
        """Begin to publish everything again if the topic is not the one that was filled, for some seconds already."""
        async with self._alone() as connection:
            ours = (await connection.fetchrow(_TOPIC))["generation"]
            theirs = await self._marker.read()
            if ours == theirs:
                self._new_since = None
                await self._renew_marker(ours)
                return
            if ours and not self._is_settled():  # the very first one was made by the setup, long ago
                return
            generation = max(ours, theirs or 0) + 1
            await connection.execute(_NEW_GENERATION, generation)
            # Whichever of the two is lost: they differ, and it is done again.
            await self._marker.write(generation)
            await connection.execute(_OWED_AT_ONCE)
            await connection.execute(_WALKS_SOON)
            logger.warning(
                "publishing the state of every order", extra={"topic": self._topic, "generation": generation}
            )

    def _is_settled(self) -> bool:
        """Whether the topic has been new for long enough to be filled."""
        now = self._monotonic()
        self._new_since = now if self._new_since is None else self._new_since
        return now - self._new_since >= self._settle_seconds

    async def _renew_marker(self, generation: int) -> None:
        if self._monotonic() >= self._renew_at:
            await self._marker.write(generation)
            self._renew_at = self._monotonic() + _RENEW_MARKER_SECONDS

    async def turn(self) -> bool:
        """Publish a batch of what changed, and one of what is published again; says whether there may be more.

        Both together hold `BATCH_BYTES` of orders, and the last order of each.

        When it is cancelled it ends what it has begun: another replica publishes newer states as soon as the lock is
        free, and what was on its way here must not come after them.
        """
        turn = asyncio.create_task(self._turn(), name="publish states")
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            await asyncio.wait([turn], timeout=_LAST_TURN_SECONDS)
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            raise

    async def _turn(self) -> bool:
        try:
            return await self._publish_next()
        finally:
            if self._saw_a_tear:
                await self._pool.execute(_TORN)
                self._saw_a_tear = False

    async def _publish_next(self) -> bool:
        async with self._alone() as connection:
            if self._doubtful:
                doubtful = sorted(self._doubtful)
                await connection.execute(_NOTE, [token for token, _ in doubtful], [order for _, order in doubtful])
            changed = await connection.fetch(_CHANGED, BATCH_ORDERS, BATCH_BYTES)
            self._metrics.order_state_lag.set(max((row["waited"] for row in changed), default=0))
            topic = await connection.fetchrow(_TOPIC)
            place = topic["republish_after"]
            if place is None and topic["passes_left"]:
                await connection.execute(_AGAIN)
                place = 0
            again = [] if place is None else await connection.fetch(_AFTER, BATCH_ORDERS, _room_beside(changed), place)
            await self._publish([*changed, *again])
            notes = [note for row in changed for note in row["ids"]]
            await connection.execute(_DONE, notes)
            goes_on = len(again) == BATCH_ORDERS or _is_cut(again)
            if place is not None:
                await connection.execute(_MOVE, place, again[-1]["id"] if goes_on else None)
        self._doubtful.clear()
        return len(notes) >= BATCH_ORDERS or _is_cut(changed) or goes_on

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction that no other replica's runs beside."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK)
            yield connection

    async def _publish(self, rows: Sequence[asyncpg.Record]) -> None:
        self._doubtful.update((row["user_token_id"], row["allegro_order_id"]) for row in rows)
        carried = headers(correlation_id=current_correlation_id())
        records = [(state.key, state.encode(), carried) for state in map(_state, rows)]  # no state outlives its record
        fitting = [record for record in records if len(record[1]) <= MAX_RECORD_BYTES - _ENVELOPE_BYTES]
        if len(fitting) < len(records):
            logger.error("states too large for Kafka", extra={"orders": len(records) - len(fitting)})
        if fitting:
            try:
                await self._producer.publish_all(self._topic, fitting)
            except PublishFailedError as error:
                self._saw_a_tear = self._saw_a_tear or isinstance(error.__cause__, UnknownError)
                raise
            self._metrics.order_states.inc(len(fitting))


class _Turns(Protocol):
    async def turn(self) -> bool: ...


class _Writing(Protocol):
    @property
    def is_behind(self) -> bool: ...


async def publish_states(states: _Turns, writer: _Writing) -> bool:
    """A turn; the next one comes at once only if nothing waits to be stored: publishing costs as much as storing."""
    more = await states.turn()
    return more and not writer.is_behind


def _room_beside(rows: Sequence[asyncpg.Record]) -> int:
    """The bytes that others may have in the same turn: at least one, which is room for one order."""
    return max(1, BATCH_BYTES - sum(len(row["document"]) for row in rows))


def _is_cut(rows: Sequence[asyncpg.Record]) -> bool:
    """Whether more was found than there was room for."""
    return bool(rows) and rows[-1]["is_followed"]


def _state(row: asyncpg.Record) -> OrderState:
    return OrderState(
        token_id=row["user_token_id"],
        order_id=row["allegro_order_id"],
        observed_at=row["observed_at"],
        updated_at=row["updated_at"],
        gone_at=row["gone_at"],
        gone_reason=row["gone_reason"],
        successor_order_id=row["successor_order_id"],
        order=RawJson(row["document"]),
    )
