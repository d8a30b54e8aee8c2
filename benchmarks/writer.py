"""How close does the writer come to plain COPY? `make bench-writer`

One process of the real writer drains a topic of enriched orders into an indexed table that holds a million orders
already. The reference is one `COPY` of the same rows into a copy of the same table, in the same run on the same server:
no broker, no decoding, no idempotence, nothing that could be asked for twice. Then the same orders again (nothing to
write), and the same orders changed.

Whether the cost of an order grows with the table is asked in turns: some thousand new orders into the large table, as
many into one of 10,000 rows that is new each time and so stays small. Behind a checkpoint PostgreSQL writes every page
that it touches to its log once more, as a whole: in a large table almost every order touches pages that nobody has
touched yet, in a small one hardly any. So there is one checkpoint before the first turn and none is forced between
them, and all turns together count: they come to what fits between two checkpoints (`max_wal_size`).

The clock runs from the first committed batch to the last, so that starting Python and joining the consumer group is
not part of it; in the short turns it is PostgreSQL's own times of the commits.
"""

import argparse
import asyncio
import io
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import uvloop

from benchmarks.orders import order_bodies
from benchmarks.report import Measure, report
from benchmarks.stack import remember_commit_times
from benchmarks.table import COLUMNS, fill, rows_for_copy
from devstack.ports import free_port
from devstack.processes import Child, run
from devstack.stack import Stack, without_ours
from shared.allegro.bodies import order_facts
from shared.kafka import RecordProducer
from shared.messages import OrderObserved, RawJson, headers
from shared.settings import KafkaSettings

_TOKENS = 12
_LOOKED_AT = datetime(2026, 11, 1, tzinfo=UTC)
_EFFECT = re.compile(r'orders_backup_orders_stored_total\{effect="\w+"\} (\S+)')
# language=sql
_COMMITS = """
SELECT pg_xact_commit_timestamp(xmin) AS at, count(*) AS orders FROM orders WHERE observed_at = $1 GROUP BY 1 ORDER BY 1
"""
_GOAL_OF_COPY = 0.70
_GOAL_OF_GROWTH = 1 / 1.2


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    orders: int
    rows: int
    small_rows: int
    turns: int
    turn_orders: int


@dataclass(frozen=True)
class Speed:
    """Orders that were committed, and how long that took."""

    orders: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Speed") -> "Speed":
        return Speed(self.orders + other.orders, self.seconds + other.seconds)

    @property
    def rate(self) -> float:
        """Orders a second."""
        return self.orders / self.seconds


def _token_of(number: int) -> int:
    return 1 + number % _TOKENS


class Bench:
    """The servers, and one database a measure, each a copy of the same one."""

    def __init__(self, stack: Stack, size: Size) -> None:
        self._stack = stack
        self._size = size
        self._url = stack.database.url()

    def _database(self, name: str) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))

    async def _administer(self, *statements: str) -> None:
        connection = await asyncpg.connect(self._database("postgres"))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fill(self, template: str, rows: int) -> None:
        """A migrated database with so many orders in it."""
        await self._administer(f"CREATE DATABASE {template} TEMPLATE orders")
        connection = await asyncpg.connect(self._database(template))
        try:
            await connection.executemany(
                "INSERT INTO user_tokens (user_id) VALUES ($1)", [(f"shop-{number}",) for number in range(_TOKENS)]
            )
            await fill(connection, rows, token_of=f"1 + n % {_TOKENS}")
            await connection.execute("VACUUM ANALYZE", timeout=1800)
        finally:
            await connection.close()

    async def copy_of(self, template: str, name: str) -> str:
        """A database that nobody has measured in yet; its address."""
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy", "CHECKPOINT")
        return self._database(name)

    async def drop(self, name: str) -> None:
        """Give back the disk."""
        await self._administer(f"DROP DATABASE {name}")

    async def copy(self, database: str, rows: bytes) -> float:
        """Rows a second of one plain COPY."""
        connection = await asyncpg.connect(database)
        try:
            began = time.perf_counter()
            await connection.copy_to_table(
                "orders", source=io.BytesIO(rows), columns=COLUMNS, format="csv", timeout=1800
            )
            return self._size.orders / (time.perf_counter() - began)
        finally:
            await connection.close()

    async def checkpoint(self) -> None:
        """What was written before does not count for what comes."""
        await self._administer("CHECKPOINT")

    async def drain(self, database: str, orders: Sequence[RawJson], looked_at: datetime, effect: str) -> float:
        """Orders a second of the writer, from its first committed batch to its last."""
        self._stack.broker.restart()
        environment = {**self._stack.environment(), "DATABASE_URL": database}
        port = free_port()
        environment["WRITER_HTTP_PORT"] = str(port)
        run([sys.executable, "-m", "cli", "setup"], env=environment)
        await self._publish(environment, orders, looked_at)
        child = Child(
            "writer",
            [sys.executable, "-m", "services.writer"],
            log=self._stack.logs / "writer.out",
            env=environment,
            grace_seconds=30,
        )
        child.start()
        try:
            return await self._watch(child, f"http://127.0.0.1:{port}/metrics", len(orders), effect)
        finally:
            child.stop()

    async def committed(self, database: str, looked_at: datetime) -> Speed:
        """Of one drain that added orders, by the commits of its batches."""
        connection = await asyncpg.connect(database)
        try:
            first, *others = await connection.fetch(_COMMITS, looked_at, timeout=600)
        finally:
            await connection.close()
        if not others:
            raise RuntimeError("all orders were committed at once: nothing to measure")
        orders: int = sum(commit["orders"] for commit in others)
        return Speed(orders, (others[-1]["at"] - first["at"]).total_seconds())

    async def _publish(self, environment: Mapping[str, str], orders: Sequence[RawJson], looked_at: datetime) -> None:
        settings = KafkaSettings(kafka_bootstrap_servers=(environment["KAFKA_BOOTSTRAP_SERVERS"],))
        async with RecordProducer(settings, service="bench") as producer:
            for start in range(0, len(orders), 2000):
                records = [
                    OrderObserved(
                        token_id=_token_of(number),
                        order_id=order_facts(order).order_id,
                        observed_at=looked_at,
                        observed_by="list",
                        order=order,
                    )
                    for number, order in enumerate(orders[start : start + 2000], start)
                ]
                common = headers(correlation_id="bench")
                await producer.publish_all(
                    settings.topics.orders, [(record.key, record.encode(), common) for record in records]
                )

    async def _watch(self, child: Child, metrics: str, orders: int, effect: str) -> float:
        first: tuple[float, float] | None = None
        async with httpx.AsyncClient() as client:
            while True:
                if not child.running:
                    raise RuntimeError(f"the writer ended; see {child.log}")
                try:
                    text = (await client.get(metrics)).text
                except httpx.TransportError:
                    text = ""
                now = time.perf_counter()
                stored = sum(map(float, _EFFECT.findall(text)))
                if first is None and stored:
                    first = now, stored
                if first is not None and stored >= orders:
                    _require(text, effect, orders)
                    return (stored - first[1]) / (now - first[0])
                await asyncio.sleep(0.1)


def _require(metrics: str, effect: str, orders: int) -> None:
    """A measure of something else than what was meant is none."""
    found = re.search(rf'orders_backup_orders_stored_total{{effect="{effect}"}} (\S+)', metrics)
    if found is None or float(found[1]) != orders:
        raise RuntimeError(f"expected {orders} orders to be {effect}: {_EFFECT.findall(metrics)}")


async def _measure(bench: Bench, size: Size) -> list[Measure]:
    orders = list(order_bodies(size.orders))
    changed = [RawJson(order[:-1] + b',"seen":"again"}') for order in orders]
    rows = rows_for_copy(orders, _LOOKED_AT, token_of=_token_of)
    _say(f"{size.orders} orders, {len(rows) / size.orders:.0f} bytes each; filling {size.rows} rows")
    await bench.fill("large", size.rows)
    await bench.fill("small", size.small_rows)

    copied = await bench.copy(await bench.copy_of("large", "copied"), rows)
    await bench.drop("copied")
    _say(f"COPY: {copied:.0f} rows/s")
    large = await bench.copy_of("large", "written")
    await bench.checkpoint()
    added = await bench.drain(large, orders, _LOOKED_AT, "added")
    _say(f"writer, new orders: {added:.0f}/s")
    await bench.checkpoint()
    repeated = await bench.drain(large, orders, _LOOKED_AT + timedelta(hours=1), "unchanged")
    _say(f"writer, nothing new: {repeated:.0f}/s")
    await bench.checkpoint()
    updated = await bench.drain(large, changed, _LOOKED_AT + timedelta(hours=2), "updated")
    _say(f"writer, changed orders: {updated:.0f}/s")
    large_rate, small_rate = await _in_turns(bench, size, large)
    await bench.drop("written")
    again = await bench.copy(await bench.copy_of("large", "copied"), rows)
    _say(f"COPY once more: {again:.0f} rows/s")
    copied = (copied + again) / 2
    return [
        Measure("writer.added-vs-copy", added, "orders/s", copied, added / copied, _GOAL_OF_COPY),
        Measure("writer.unchanged-vs-copy", repeated, "orders/s", copied, repeated / copied, _GOAL_OF_COPY),
        Measure("writer.updated-vs-copy", updated, "orders/s", copied, updated / copied, _GOAL_OF_COPY),
        Measure(
            "writer.large-vs-small-table", large_rate, "orders/s", small_rate, large_rate / small_rate, _GOAL_OF_GROWTH
        ),
    ]


async def _in_turns(bench: Bench, size: Size, large: str) -> tuple[float, float]:
    """Orders a second into the large table and into the small one, of all turns together."""
    # Each copy forces a checkpoint: all of them before the first turn.
    small = [await bench.copy_of("small", f"written_small_{turn}") for turn in range(size.turns)]
    await bench.checkpoint()
    speeds: dict[int, list[Speed]] = {size.rows: [], size.small_rows: []}
    for turn in range(size.turns):
        orders = list(order_bodies(size.turn_orders, seller=3 + turn))
        looked_at = _LOOKED_AT + timedelta(days=1 + turn)
        for rows, database in ((size.rows, large), (size.small_rows, small[turn])):
            await bench.drain(database, orders, looked_at, "added")
            speeds[rows].append(await bench.committed(database, looked_at))
    for rows, each in speeds.items():
        _say(f"writer, new orders into {rows} rows: {', '.join(f'{speed.rate:.0f}' for speed in each)} orders/s")
    return sum(speeds[size.rows], Speed()).rate, sum(speeds[size.small_rows], Speed()).rate


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def _stack(folder: Path) -> Iterator[Stack]:
    with Stack(
        folder,
        os.environ,
        without_ours(os.environ),
        simulator_options=None,
        durable=True,
        working_folder=folder,
        say=_say,
    ) as stack:
        stack.start_servers()
        remember_commit_times(stack)
        stack.set_up()
        yield stack


def main() -> None:
    """Run the benchmark; the exit code is 0 only if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=100_000, help="orders in the topic")
    parser.add_argument("--rows", type=int, default=1_000_000, help="orders in the table before")
    parser.add_argument("--small-rows", type=int, default=10_000, help="orders in the small table before")
    parser.add_argument("--turns", type=int, default=3, help="to compare the large table with the small one")
    parser.add_argument("--turn-orders", type=int, default=40_000, help="orders of each of them")
    size = Size(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder, _stack(Path(folder)) as stack:
        measures = uvloop.run(_measure(Bench(stack, size), size))
    sys.exit(0 if report(measures) else 1)


if __name__ == "__main__":
    main()
