"""How the product grows: replicas, sellers, lag. `make bench-scale`

- **replicas**: a backlog of single fetches is worked off by 1, 2 and 4 enrichers and as many writers, 12 partitions, no
  limits. Where the cores are used up more replicas cannot be faster; then what counts is that they cost no more.
- **sellers**: leasing schedules and noting empty looks for 10 and for 10,000 sellers, each every 3 minutes.
- **lag**: the most memory each service holds while a million events wait in Kafka, all of Allegro's limits in force.
- **idle**: memory and CPU of each service when nothing happens.

Memory is what a process holds by itself (USS).
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import asyncpg
import uvloop

from benchmarks.backlog import EVENTS_PER_ORDER, Shelf, bursts_of, fetches, publish_interleaved
from benchmarks.many_tokens import INTERVAL_SECONDS, one_round
from benchmarks.report import Measure, report
from benchmarks.stack import NO_LIMITS, BenchStack, Replica, bench_stack, say
from shared.database import database_now
from shared.messages import OrderEvent

_UNLIMITED = {f"ALLEGRO_{name}_LIMIT_PER_MINUTE": "100000000" for name in ("CLIENT", "LIST", "EVENTS", "DETAIL")}
_SELLERS = 60
_SERVICES = ("api", "poller", "enricher", "writer")
_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 120.0

# Of the first replica's speed, and of its CPU for an order.
_GOAL_OF_REPLICAS = 0.8
_GOAL_CORES = 0.1
_GOAL_MIB = 150 * 1_000_000 / 2**20
# Mostly the questions for new records: twenty a second for each consumer of the embedded broker.
_GOAL_IDLE_CORES = 0.1


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    replicas: Sequence[int]
    orders: int
    tokens: int
    lag: int
    lag_seconds: float
    idle_seconds: float


@dataclass(frozen=True)
class Speed:
    """How a backlog was worked off."""

    orders_a_second: float
    cpu_per_thousand: float


def _cpu_seconds(replicas: Sequence[Replica]) -> float:
    return sum(replica.cpu_seconds() for replica in replicas)


async def _until_stored(pool: asyncpg.Pool, count: int) -> int:
    """Wait until there are so many orders; returns how many there are."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            stored: int = await pool.fetchval("SELECT count(*) FROM orders")
            if stored >= count:
                return stored
            await asyncio.sleep(_LOOK_SECONDS)


async def _work_off(stack: BenchStack, shelf: Shelf, turn: int, each: int, replicas: int) -> Speed:
    """The `turn`th part of the sellers' orders; measured while all replicas work, without their starting up."""
    environment = stack.fresh_topics()
    async with stack.pool() as pool:
        now = await database_now(pool)
        backlog = [
            fetches(seller.token_id, shelf.orders(seller, (turn + 1) * each)[turn * each :], now)
            for seller in shelf.sellers
        ]
        await publish_interleaved(stack, environment, backlog)
        before, count = await pool.fetchval("SELECT count(*) FROM orders"), each * len(shelf.sellers)
        with stack.services(environment, writer=replicas, enricher=replicas) as services:
            working = [*chain.from_iterable(services.values())]
            first = await _until_stored(pool, before + count // 5)
            began, cpu = time.monotonic(), _cpu_seconds(working)
            last = await _until_stored(pool, before + count * 9 // 10)
            seconds, spent = time.monotonic() - began, _cpu_seconds(working) - cpu
    return Speed((last - first) / seconds, spent / (last - first) * 1000)


def _replicas(plan: Plan) -> list[Measure]:
    each = plan.orders // _SELLERS
    simulator = ["--sellers", str(_SELLERS), "--orders", str(2 * each * len(plan.replicas)), *NO_LIMITS]
    speeds: dict[int, Speed] = {}
    with bench_stack(simulator, _UNLIMITED) as stack:

        async def prepare() -> Shelf:
            async with stack.pool() as pool:
                shelf = Shelf(await stack.connect_sellers(pool, _SELLERS))
                await shelf.fill(stack, pool, {seller.token_id: each * len(plan.replicas) for seller in shelf.sellers})
                return shelf

        shelf = uvloop.run(prepare())
        for turn, replicas in enumerate(plan.replicas):
            speed = speeds[replicas] = uvloop.run(_work_off(stack, shelf, turn, each, replicas))
            say(
                f"{replicas} enrichers and writers: {speed.orders_a_second:.0f} orders/s,"
                f" {speed.cpu_per_thousand:.2f} CPU s for 1000 orders"
            )
    one = speeds[plan.replicas[0]]
    measures = []
    for replicas, speed in list(speeds.items())[1:]:
        name = f"scale: {replicas} enrichers and writers against {plan.replicas[0]}, {os.cpu_count()} cores"
        faster, cheaper = speed.orders_a_second / one.orders_a_second, one.cpu_per_thousand / speed.cpu_per_thousand
        measures += [
            Measure(
                f"{name}: speed", speed.orders_a_second, "orders/s", one.orders_a_second, faster, _GOAL_OF_REPLICAS
            ),
            Measure(
                f"{name}: cost",
                speed.cpu_per_thousand,
                "CPU s for 1000 orders",
                one.cpu_per_thousand,
                cheaper,
                _GOAL_OF_REPLICAS,
            ),
        ]
    return measures


def _tokens(plan: Plan) -> list[Measure]:
    measures = []
    for tokens in (10, plan.tokens):
        with bench_stack([], {}) as stack:

            async def look(stack: BenchStack = stack, tokens: int = tokens) -> list[Measure]:
                async with stack.pool() as pool:
                    found = await one_round(pool, stack.postgres_pid, tokens)
                say(
                    f"{tokens} sellers: {found.cpu.ours:.2f} s of the poller's CPU and {found.cpu.postgres:.2f} s of"
                    f" PostgreSQL's every {INTERVAL_SECONDS} s; {found.rows} rows"
                )
                name = f"scale: {tokens} sellers every {INTERVAL_SECONDS} s"
                return [
                    Measure(f"{name}: claims", found.cores, "cores", _GOAL_CORES, _GOAL_CORES / found.cores, 1.0),
                    Measure(f"{name}: rows of empty looks", found.rows, "rows", 0, float(found.rows == 0), 1.0),
                ]

            measures += uvloop.run(look())
    return measures


@dataclass
class Held:
    """The most memory of each service, in bytes, and its CPU seconds."""

    bytes: dict[str, int] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)


async def _watch(services: Mapping[str, Sequence[Replica]], seconds: float) -> Held:
    replicas = [*chain.from_iterable(services.values())]
    held, began = Held(), time.monotonic()
    before = {one.service: one.cpu_seconds() for one in replicas}
    while time.monotonic() - began < seconds:
        for one in replicas:
            held.bytes[one.service] = max(held.bytes.get(one.service, 0), one.memory_bytes())
        await asyncio.sleep(_LOOK_SECONDS)
    elapsed = time.monotonic() - began
    held.cores = {one.service: (one.cpu_seconds() - before[one.service]) / elapsed for one in replicas}
    return held


def _memory(held: Held, name: str) -> list[Measure]:
    found = {service: count / 2**20 for service, count in held.bytes.items()}
    return [
        Measure(f"scale: memory of the {service}, {name}", each, "MiB", _GOAL_MIB, _GOAL_MIB / each, 1.0)
        for service, each in found.items()
    ]


def _idle(stack: BenchStack, plan: Plan) -> list[Measure]:
    with stack.services(stack.fresh_topics(), **dict.fromkeys(_SERVICES, 1)) as services:
        time.sleep(5)  # what starting leaves behind is not idling
        held = uvloop.run(_watch(services, plan.idle_seconds))
    return [
        *_memory(held, "idle"),
        *(
            Measure(f"scale: CPU of the {service}, idle", cores, "cores", _GOAL_IDLE_CORES, _GOAL_IDLE_CORES / cores, 1)
            for service, cores in held.cores.items()
            if cores
        ),
    ]


def _lag(stack: BenchStack, plan: Plan) -> list[Measure]:
    environment = stack.fresh_topics()
    each = plan.lag // _SELLERS // EVENTS_PER_ORDER

    async def fill() -> None:
        async with stack.pool() as pool:
            shelf = Shelf(await stack.connect_sellers(pool, _SELLERS))
            await shelf.fill(stack, pool, {seller.token_id: each for seller in shelf.sellers})
            now = await database_now(pool)

        def events(token_id: int, shelf: Shelf, number: int) -> Iterator[OrderEvent]:
            return bursts_of(token_id, shelf.orders(shelf.sellers[number], each), now)

        say(f"publishing {plan.lag} events")
        await publish_interleaved(
            stack,
            environment,
            [events(seller.token_id, shelf, number) for number, seller in enumerate(shelf.sellers)],
        )

    uvloop.run(fill())
    say("starting the services")
    with stack.services(environment, **dict.fromkeys(_SERVICES, 1)) as services:
        held = uvloop.run(_watch(services, plan.lag_seconds))
        stored = uvloop.run(_stored_events(stack))
    say(f"{stored} of {plan.lag} events were stored in {plan.lag_seconds:.0f} s")
    return _memory(held, f"lag of {plan.lag} messages")


async def _stored_events(stack: BenchStack) -> int:
    async with stack.pool() as pool:
        count: int = await pool.fetchval("SELECT count(*) FROM order_events")
        return count


def _services(plan: Plan) -> list[Measure]:
    orders = 2 * plan.lag // _SELLERS // EVENTS_PER_ORDER
    simulator = ["--sellers", str(_SELLERS), "--orders", str(orders), "--list-limit", "0", "--client-limit", "0"]
    with bench_stack(simulator, {}) as stack:
        return [*_idle(stack, plan), *_lag(stack, plan)]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="of enricher and writer")
    parser.add_argument("--orders", type=int, default=12_000, help="fetched in each run of replicas")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--lag", type=int, default=1_000_000, help="messages that wait")
    parser.add_argument("--lag-seconds", type=float, default=40.0, help="for which memory is watched")
    parser.add_argument("--idle-seconds", type=float, default=15.0)
    plan = Plan(**vars(parser.parse_args(arguments)))
    measures = [*_tokens(plan), *_replicas(plan), *_services(plan)]
    return 0 if report(measures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
