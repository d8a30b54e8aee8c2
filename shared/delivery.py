"""What becomes of a consumed record: its effect is durable and the offset moves, or the same record comes again.

There are two ends for a record, and no third: *done*, or *dead letter*. "Retry
later" is a row in `pending_fetches`, "not now" is waiting here; neither moves an offset. FastStream's own consumers
acknowledge too early for that (a header that is null skips a record under every policy; a failed handler is either
skipped or repeated without a pause), so we read with aiokafka under FastStream's lifespan.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from prometheus_client import Gauge

from shared.errors import TransientError
from shared.kafka_batches import OutgoingRecord
from shared.kafka_connection import connection_options
from shared.leaderless_group import free_if_leaderless
from shared.logs import scrub
from shared.settings import KafkaSettings

logger = logging.getLogger(__name__)

LAG = Gauge(
    "orders_backup_consumer_lag_records",
    "Records of this replica's partitions that it has not taken yet; rising: more replicas, or something is away.",
    ["topic"],
)

_LAG_SECONDS = 5.0
# A rebalance takes a minute at most (`open_consumer`); what takes longer is no rebalance.
_LONGEST_POLL_SECONDS = 75.0
_LONGEST_COMMIT_SECONDS = 15.0
_MAX_ERROR_LENGTH = 2000
# Kafka's own limit of a topic's name; names of services and errors are shorter.
_MAX_NAME_LENGTH = 249
_INT4 = 2**31 - 1
_INT8 = 2**63 - 1
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_PREFIX = "dead-letter-"
_CAUSE_HEADERS = frozenset(
    f"{_PREFIX}{name}"
    for name in ("null", "service", "topic", "partition", "offset", "error-type", "error", "attempts")
)


@dataclass(frozen=True)
class DeadLetter:
    """A record that cannot be processed: as it came, where it stood, why, and after how many attempts (D2)."""

    service: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    error_type: str
    error: str
    attempts: int = 1

    @classmethod
    def of(cls, record: ConsumerRecord, error: Exception, *, service: str, attempts: int = 1) -> "DeadLetter":
        return cls(
            service=service,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            value=record.value,
            headers=tuple(record.headers),
            error_type=type(error).__name__,
            error=_without_nul(scrub(str(error)))[:_MAX_ERROR_LENGTH],
            attempts=attempts,
        )

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.value or b"").digest()

    @property
    def token_id(self) -> int | None:
        """The token that the key names, if it names one."""
        key = self.key or b""
        return int(key) if key.isdigit() and len(key) < 19 else None

    def header_json(self) -> bytes:
        """The headers as stored: pairs of name and base64 value, since values may be null or any bytes.

        `jsonb` cannot hold a NUL: a name with one stands there without it, and in base64 behind the value.
        """
        return json.dumps([_stored(name, value) for name, value in self.headers]).encode()

    def without_headers(self) -> "DeadLetter":
        """The same, less what a stranger could have put into it but key and value, which are bytes."""
        return replace(self, headers=(), error=self.error + "; its headers are not kept: they were refused as well")

    def without_content(self) -> "DeadLetter":
        """The same, small: the record stays where it stood, as long as its topic keeps it."""
        lengths = f"key {len(self.key or b'')}, value {len(self.value or b'')} bytes"
        error = f"{self.error[: _MAX_ERROR_LENGTH // 2]}; the record is too large to be kept here ({lengths})"
        key = self.key if self.token_id is not None else None
        return replace(self, key=key, value=None, headers=(), error=error)

    def outgoing(self) -> OutgoingRecord:
        """The record on the dead-letter topic: as it came, with the cause as its last headers.

        Where key or value was null it is empty there, and a header says so: aiokafka sends no record without both.
        """
        absent = [name for name, data in (("key", self.key), ("value", self.value)) if data is None]
        cause = {
            "null": " ".join(absent),
            "service": self.service,
            "topic": self.topic,
            "partition": str(self.partition),
            "offset": str(self.offset),
            "error-type": self.error_type,
            "error": self.error,
            "attempts": str(self.attempts),
        }
        headers = [*self.headers, *((f"{_PREFIX}{name}", text.encode()) for name, text in cause.items())]
        return self.key or b"", self.value or b"", headers

    @classmethod
    def from_record(cls, record: ConsumerRecord) -> "DeadLetter":
        """Read one back from the dead-letter topic; whatever it lacks is filled with where it was found.

        Only the last headers are ours: a record that was set aside before, and copied by hand, has such ones itself.
        """
        headers = tuple(record.headers)
        own: dict[str, bytes] = {}
        while headers and headers[-1][0] in _CAUSE_HEADERS and headers[-1][0] not in own:
            name, value = headers[-1]
            own[name] = value or b""
            headers = headers[:-1]

        def text(name: str, default: str, longest: int = _MAX_NAME_LENGTH) -> str:
            found = own.get(f"{_PREFIX}{name}", default.encode())
            return _without_nul(found.decode("utf-8", "replace"))[:longest]

        def number(name: str, default: int, largest: int) -> int:
            found = text(name, "")
            value = int(found) if _NUMBER.fullmatch(found) else default
            return value if -largest <= value <= largest else default

        absent = text("null", "").split()
        return cls(
            service=text("service", "unknown"),
            topic=text("topic", record.topic),
            partition=number("partition", record.partition, _INT4),
            offset=number("offset", record.offset, _INT8),
            key=None if "key" in absent else record.key,
            value=None if "value" in absent else record.value,
            headers=headers,
            error_type=text("error-type", "unknown"),
            error=text("error", "", _MAX_ERROR_LENGTH),
            attempts=number("attempts", 1, _INT4),
        )


def stored_headers(document: str | bytes) -> list[tuple[str, str | None]]:
    """Read `header_json`: names as they came, values in base64."""
    return [
        (base64.b64decode(exact[0]).decode() if exact else name, value) for name, value, *exact in json.loads(document)
    ]


def _stored(name: str, value: bytes | None) -> list[str | None]:
    encoded = None if value is None else base64.b64encode(value).decode()
    if "\0" not in name:
        return [name, encoded]
    return [_without_nul(name), encoded, base64.b64encode(name.encode()).decode()]


def _without_nul(text: str) -> str:
    """PostgreSQL's text cannot hold a NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


class GroupConsumer(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka is untyped
    """A consumer that knows how to ask after its group."""

    def __init__(self, settings: KafkaSettings, group: str, **options: Any) -> None:
        super().__init__(**connection_options(settings), group_id=group, **options)
        self._settings = settings
        self._group = group

    async def free_group_if_leaderless(self) -> None:
        await free_if_leaderless(self._settings, self._group)


def open_consumer(settings: KafkaSettings, *, group: str, service: str, max_poll_interval_ms: int) -> GroupConsumer:
    """A consumer that commits nothing by itself and starts at the beginning where no offset is known.

    Range assignment gives one member the same partition numbers of every topic: a token's events and orders meet.
    The rebalance timeout is the time a member gets to finish what it holds; aiokafka's default is the session's 10 s.
    """
    session_ms = int(settings.kafka_session_timeout_seconds * 1000)
    return GroupConsumer(
        settings,
        f"{settings.kafka_topic_prefix}{group}",
        client_id=f"orders-backup-{service}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=session_ms // 10,
        rebalance_timeout_ms=60_000,
        max_poll_interval_ms=max_poll_interval_ms,
        fetch_max_wait_ms=int(settings.kafka_fetch_wait_seconds * 1000),
        # What is fetched ahead of twelve partitions stays in memory while they wait (promise P10). A record that is
        # larger comes all the same, alone (KIP-74).
        max_partition_fetch_bytes=256 << 10,
        fetch_max_bytes=4 << 20,
        metadata_max_age_ms=30_000,
        partition_assignment_strategy=(RangePartitionAssignor,),
    )


async def lags_of(consumer: AIOKafkaConsumer) -> dict[str, int]:
    """Records of each topic that stand in front of the consumer; raises IllegalStateError during a rebalance.

    Kafka names a partition's end with every fetch; until the first one the partition counts as read.
    """
    ends = {partition: consumer.highwater(partition) for partition in consumer.assignment()}
    lags = dict.fromkeys(consumer.subscription(), 0)
    for partition, end in ends.items():
        if end is not None:
            lags[partition.topic] += max(end - await consumer.position(partition), 0)
    return lags


async def _begin_again_where_lost(consumer: AIOKafkaConsumer) -> None:
    """Go back to the beginning of each log that ends before our position: it is another one, Kafka has lost ours.

    Apache Kafka says so itself (`auto_offset_reset`); the embedded broker answers with nothing, for ever. Raises
    IllegalStateError during a rebalance.
    """
    for partition in consumer.assignment():
        end = consumer.highwater(partition)
        if end is not None and end < (position := await consumer.position(partition)):
            logger.warning(
                "a log ends before our position: beginning again",
                extra={"topic": partition.topic, "partition": partition.partition, "position": position, "end": end},
            )
            await consumer.seek_to_beginning(partition)


async def _watch(consumer: AIOKafkaConsumer, and_then: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_LAG_SECONDS)
        try:
            await _begin_again_where_lost(consumer)
            for topic, lag in (await lags_of(consumer)).items():
                LAG.labels(topic).set(lag)
        except (IllegalStateError, KafkaError) as error:
            logger.debug("no saying how far we are behind: the next look tells", extra={"error": repr(error)})
        and_then()


@asynccontextmanager
async def watched(consumer: AIOKafkaConsumer, and_then: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
    """While the block lasts, see to it that the started consumer does not wait behind the end of a log, and tell
    Prometheus how far it is behind, and what else there is."""
    watching = asyncio.create_task(_watch(consumer, and_then), name="watch the consumer")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


class SilentConsumerError(TransientError):
    """The consumer neither gives records nor says that there are none: Kafka is away, or the consumer is stuck."""


async def join(consumer: GroupConsumer) -> None:
    """Start the consumer, which is a member of its group then; raises SilentConsumerError if it does not become one.

    aiokafka waits for its first assignment for ever, whatever becomes of the group.
    """
    try:
        async with asyncio.timeout(_LONGEST_POLL_SECONDS):
            await consumer.start()
    except TimeoutError:
        await consumer.free_group_if_leaderless()
        raise SilentConsumerError(f"no partitions within {_LONGEST_POLL_SECONDS:g} s") from None


async def poll(
    consumer: GroupConsumer, *, timeout_ms: int, max_records: int
) -> Mapping[TopicPartition, Sequence[ConsumerRecord]]:
    """What has come, or comes within `timeout_ms`; raises SilentConsumerError if there is no saying.

    aiokafka waits for ever for the end of a rebalance and for Kafka to come back; a new consumer finds out which it is.
    """
    try:
        async with asyncio.timeout(_LONGEST_POLL_SECONDS):
            polled: Mapping[TopicPartition, Sequence[ConsumerRecord]] = await consumer.getmany(
                timeout_ms=timeout_ms, max_records=max_records
            )
    except TimeoutError:
        await consumer.free_group_if_leaderless()
        raise SilentConsumerError(f"no answer within {_LONGEST_POLL_SECONDS:g} s") from None
    return polled


async def commit(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> bool:
    """Commit; if the partitions moved on or the broker is away (False), the records come again and change nothing."""
    if not offsets:
        return True
    try:
        async with asyncio.timeout(_LONGEST_COMMIT_SECONDS):  # aiokafka waits for the group's coordinator for ever
            await consumer.commit(dict(offsets))
    except (CommitFailedError, IllegalStateError, KafkaError, TimeoutError) as error:
        logger.warning("offsets not committed: these records will come again", extra={"error": repr(error)})
        return False
    return True


class RebalanceLog(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Says which partitions came and went."""

    async def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        logger.info("partitions revoked", extra={"partitions": sorted(str(tp) for tp in revoked)})

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        logger.info("partitions assigned", extra={"partitions": sorted(str(tp) for tp in assigned)})
