"""What each way of working saves: the same job with it and without it, in turns, in one run. `make bench-techniques`

- **batches**: records are consumed and published again, as many at a time as there are, against a handler for each
  record, some of them under way at a time, which publishes its own over aiokafka's producer and waits for Kafka's word;
  by the processor's time of this process, since the broker's sets the pace of both.
- **uvloop**: small questions to PostgreSQL on uvloop, against Python's own event loop; by this process's time as well,
  since PostgreSQL sets the pace of both.
- **raw bytes**: an order from Allegro's answer to the record and back, as the bytes that came, against parsing it and
  writing it again on the way; by the same library.
- **arrays**: orders stored by one statement over arrays, against `executemany` of the same statement, in one
  transaction of 500 orders each.
- **prepared statements**: the same statement over arrays of ten, kept prepared, against parsed and planned each time.

There is no goal but to be faster: what is not is not worth its lines.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import asyncpg
import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from msgspec.structs import asdict

from benchmarks.backlog import observed
from benchmarks.report import Measure, report
from benchmarks.stack import BenchStack, Settings, bench_stack, say
from services.writer import statements as sql
from shared.allegro.bodies import order_facts
from shared.database import database_now, open_pool
from shared.kafka import RecordProducer
from shared.kafka_connection import connection_options
from shared.messages import OrderObserved, decode, headers

_PARTITIONS = 12
_POLL = 500
_HANDLERS = 16
# Orders of a batch of the writer: of a bulk load, and of live events.
_MANY = 500
_FEW = 10
_CONNECTIONS = 8
_GOAL = 1.0


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    records: int
    singles: int
    orders: int
    turns: int


Rate = Callable[[], float]


def _in_turns(turns: int, with_it: Rate, without_it: Rate) -> tuple[float, float]:
    """The medians of both, measured in turns: the machine's speed drifts."""
    rates = [(with_it(), without_it()) for _ in range(turns)]
    return median(one for one, _ in rates), median(other for _, other in rates)


def _compared(name: str, unit: str, rates: tuple[float, float]) -> Measure:
    with_it, without_it = rates
    say(f"{name}: {with_it:.0f} {unit} with it, {without_it:.0f} without")
    return Measure(f"techniques: {name}", with_it, unit, without_it, with_it / without_it, _GOAL)


class Kafka:
    """A topic full of orders, consumed and published again."""

    def __init__(self, stack: BenchStack, records: Sequence[OrderObserved]) -> None:
        environment = stack.fresh_topics(partitions=_PARTITIONS)
        self._settings: Settings = stack.settings(environment)
        self._records = records
        self._common = headers(correlation_id="bench")

    async def fill(self) -> None:
        topic = self._settings.topics.orders
        async with RecordProducer(self._settings, service="bench") as producer:
            for start in range(0, len(self._records), _POLL):
                part = self._records[start : start + _POLL]
                await producer.publish_all(topic, [(one.key, one.encode(), self._common) for one in part])

    async def in_batches(self, count: int) -> float:
        """Records a CPU second, all that were polled published together."""
        async with RecordProducer(self._settings, service="bench") as producer:

            async def publish(records: Sequence[ConsumerRecord]) -> None:
                outgoing = [(record.key, record.value, list(record.headers)) for record in records]
                await producer.publish_all(self._settings.topics.dead_letters, outgoing)

            return await self._move(count, publish)

    async def one_by_one(self, count: int) -> float:
        """Records a CPU second, a handler for each."""
        topic = self._settings.topics.dead_letters
        producer = AIOKafkaProducer(**connection_options(self._settings), acks="all", compression_type="zstd")
        async with producer:

            async def handle(records: Iterator[ConsumerRecord]) -> None:
                for record in records:
                    await producer.send_and_wait(topic, record.value, record.key, headers=list(record.headers))

            async def publish(records: Sequence[ConsumerRecord]) -> None:
                waiting = iter(records)
                await asyncio.gather(*(handle(waiting) for _ in range(_HANDLERS)))

            return await self._move(count, publish)

    async def _move(self, count: int, publish: Callable[[Sequence[ConsumerRecord]], Awaitable[None]]) -> float:
        """From the first record that is consumed to the last that Kafka has acknowledged."""
        topics = self._settings.topics
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings), auto_offset_reset="earliest", enable_auto_commit=False
        )
        async with consumer:
            partitions = [TopicPartition(topics.orders, number) for number in range(_PARTITIONS)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            moved, used = 0, 0.0
            while moved < count:
                polled = await consumer.getmany(timeout_ms=1000, max_records=_POLL)
                records = [record for part in polled.values() for record in part]
                used = used or time.process_time()
                await publish(records)
                moved += len(records)
            return moved / (time.process_time() - used)


def _batches(kafka: Kafka, plan: Plan) -> Measure:
    rates = _in_turns(
        plan.turns,
        lambda: uvloop.run(kafka.in_batches(plan.records)),
        lambda: uvloop.run(kafka.one_by_one(plan.singles)),
    )
    return _compared("batches instead of a handler for each record", "records/CPU s", rates)


async def _questions(url: str, number: int) -> float:
    """Small questions to PostgreSQL a CPU second of ours, on a few connections at once."""
    pool = await open_pool(url, service="bench", max_size=_CONNECTIONS)
    try:

        async def ask() -> None:
            async with pool.acquire() as connection:
                for _ in range(number // _CONNECTIONS):
                    await connection.fetchval("SELECT $1::bigint", 1)

        await ask()
        used = time.process_time()
        await asyncio.gather(*(ask() for _ in range(_CONNECTIONS)))
        return number / (time.process_time() - used)
    finally:
        pool.terminate()


def _uvloop(stack: BenchStack, plan: Plan) -> Measure:
    url = stack.database.url()
    rates = _in_turns(
        plan.turns,
        lambda: uvloop.run(_questions(url, plan.records)),
        lambda: asyncio.run(_questions(url, plan.records)),
    )
    return _compared("uvloop instead of asyncio's loop", "questions/CPU s", rates)


def _raw_bytes(records: Sequence[OrderObserved], plan: Plan) -> Measure:
    def through(work: Callable[[OrderObserved], None]) -> float:
        began = time.perf_counter()
        for record in records:
            work(record)
        return len(records) / (time.perf_counter() - began)

    def as_it_came(record: OrderObserved) -> None:
        order_facts(record.order)
        decode(record.encode())

    def parsed(record: OrderObserved) -> None:
        order_facts(record.order)
        fields = {**asdict(record), "order": msgspec.json.decode(record.order)}
        msgspec.json.encode(msgspec.json.decode(msgspec.json.encode(fields))["order"])

    rates = _in_turns(plan.turns, lambda: through(as_it_came), lambda: through(parsed))
    return _compared("an order's bytes passed on as they came", "orders/s", rates)


def _columns(records: Sequence[OrderObserved]) -> list[list[Any]]:
    """What the writer binds to its statement, a column each."""
    rows = []
    for record in records:
        facts = order_facts(record.order)
        rows.append(
            [
                *(record.token_id, record.order_id, facts.status, facts.fulfillment_status, facts.buyer_id),
                *(facts.buyer_login, facts.buyer_email, facts.total_amount, facts.currency, facts.bought_at),
                *(facts.updated_at, facts.revision, bytes(record.order), None, record.observed_at, record.observed_by),
            ]
        )
    return [list(column) for column in zip(*rows, strict=True)]


class Orders:
    """The table of orders, empty before each measure."""

    def __init__(self, stack: BenchStack, records: Sequence[OrderObserved], *, at_a_time: int) -> None:
        self._url = stack.database.url()
        self._batches = [_columns(records[start : start + at_a_time]) for start in range(0, len(records), at_a_time)]
        self._count = len(records)

    def rate(self, store: Callable[[asyncpg.Connection, list[list[Any]]], Awaitable[object]]) -> float:
        return uvloop.run(self._rate(store))

    async def _rate(self, store: Callable[[asyncpg.Connection, list[list[Any]]], Awaitable[object]]) -> float:
        pool = await open_pool(self._url, service="bench", max_size=1)
        try:
            async with pool.acquire() as connection:
                await connection.execute("TRUNCATE orders, order_state_outbox CASCADE")
                began = time.perf_counter()
                for columns in self._batches:
                    async with connection.transaction():
                        await store(connection, columns)
                return self._count / (time.perf_counter() - began)
        finally:
            pool.terminate()


async def _over_arrays(connection: asyncpg.Connection, columns: list[list[Any]]) -> None:
    await connection.fetch(sql.UPSERT_ORDERS, *columns)


async def _one_by_one(connection: asyncpg.Connection, columns: list[list[Any]]) -> None:
    await connection.executemany(sql.UPSERT_ORDERS, [[[value] for value in row] for row in zip(*columns, strict=True)])


def _parsed_each_time() -> Callable[[asyncpg.Connection, list[list[Any]]], Awaitable[None]]:
    numbers: Iterator[int] = iter(range(1_000_000_000))

    async def store(connection: asyncpg.Connection, columns: list[list[Any]]) -> None:
        # Another text is another statement.
        await connection.fetch(f"{sql.UPSERT_ORDERS}-- {next(numbers)}", *columns)

    return store


def _arrays(orders: Orders, plan: Plan) -> Measure:
    rates = _in_turns(plan.turns, lambda: orders.rate(_over_arrays), lambda: orders.rate(_one_by_one))
    return _compared("one statement over arrays instead of one an order", "orders/s", rates)


def _prepared(orders: Orders, plan: Plan) -> Measure:
    rates = _in_turns(plan.turns, lambda: orders.rate(_over_arrays), lambda: orders.rate(_parsed_each_time()))
    return _compared("statements prepared once", "orders/s", rates)


async def _records(stack: BenchStack, count: int) -> list[OrderObserved]:
    async with stack.pool() as pool:
        (seller,) = await stack.connect_sellers(pool, 1)
        return list(observed([seller.token_id], count, await database_now(pool)))


def _measure(stack: BenchStack, plan: Plan) -> list[Measure]:
    records = uvloop.run(_records(stack, plan.records))
    kafka = Kafka(stack, records)
    uvloop.run(kafka.fill())
    chosen = records[: plan.orders]
    return [
        _batches(kafka, plan),
        _uvloop(stack, plan),
        _raw_bytes(chosen, plan),
        _arrays(Orders(stack, chosen, at_a_time=_MANY), plan),
        _prepared(Orders(stack, chosen, at_a_time=_FEW), plan),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if each way of working is the faster one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.techniques",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=int, default=20_000, help="in the topic")
    parser.add_argument("--singles", type=int, default=5_000, help="of them, where each has a handler")
    parser.add_argument("--orders", type=int, default=5_000, help="stored, or read and written")
    parser.add_argument("--turns", type=int, default=3)
    plan = Plan(**vars(parser.parse_args(arguments)))
    with bench_stack(["--sellers", "1", "--orders", "0"], {}) as stack:
        return 0 if report(_measure(stack, plan)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
