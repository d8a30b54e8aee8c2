"""How the product grows: replicas, sellers, lag. `make bench-scale`

- **replicas**: a backlog of single fetches is worked off by 1, 2 and 4 enrichers and as many writers, 12 partitions, no
  limits. Services, broker, PostgreSQL and the simulated Allegro share one machine, so n replicas cannot be n times as
  fast: what can be expected is measured with the first (`Speed.expected`). In three rounds; the median counts.
- **sellers**: one poller process, 10 and 10,000 sellers without news, each looked at every 3 minutes: CPU of the poller
  and of PostgreSQL, whether the looks are on time, memory (`benchmarks.many_tokens`).
- **lag**: the most memory each service holds while a million events and 200,000 orders wait in Kafka, real bodies, all
  of Allegro's limits in force.
- **idle**: memory and CPU of each service when nothing happens.

Memory is the most that a process held by itself (USS, looked at five times a second); of the lag, the most that it had
altogether as well (RSS, by the kernel's own count), which others share in part.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from itertools import chain
from statistics import median

import asyncpg
import psutil
import uvloop

from benchmarks.backlog import EVENTS_PER_ORDER, Shelf, bursts_of, fetches, observed, owe, publish_interleaved
from benchmarks.many_tokens import INTERVAL_SECONDS, Round, look_into, simulated_sellers
from benchmarks.report import Measure, report
from benchmarks.stack import NO_LIMITS, BenchStack, Replica, bench_stack, say
from devstack.chaos.broker_view import members_of
from shared.database import database_now
from shared.messages import OrderEvent

_UNLIMITED = {f"ALLEGRO_{name}_LIMIT_PER_MINUTE": "100000000" for name in ("CLIENT", "LIST", "EVENTS", "DETAIL")}
_SELLERS = 60
_SERVICES = ("api", "poller", "enricher", "writer")
_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 120.0

# Of the speed that can be expected, and of the first replica's CPU for an order.
_GOAL_OF_REPLICAS = 0.8
_GOAL_CORES = 0.1
# A schedule's own jitter moves a look by as much.
_GOAL_LATE_SECONDS = INTERVAL_SECONDS * 0.05
_GOAL_OF_LOOKS = 0.95
_GOAL_MIB = 150 * 1_000_000 / 2**20
# Mostly the questions for new records: twenty a second for each consumer of the embedded broker.
_GOAL_IDLE_CORES = 0.1


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    replicas: Sequence[int]
    rounds: int
    orders: int
    tokens: int
    tokens_seconds: float
    lag: int
    lag_orders: int
    lag_seconds: float
    idle_seconds: float


@dataclass(frozen=True)
class Speed:
    """How a backlog was worked off."""

    orders_a_second: float
    cpu_per_thousand: float
    busy_cores: float
    """Of everything on this machine."""
    simulator_cores: float

    def expected(self, replicas: int) -> float:
        """How much faster so many replicas can be than this one.

        No faster than the cores last that everything together uses, and than the simulated Allegro, which is one
        process with one thread.
        """
        return max(1.0, min(replicas, (os.cpu_count() or 1) / self.busy_cores, 1 / self.simulator_cores))


@dataclass(frozen=True)
class _Clock:
    """Moments of a run."""

    at: float
    services: float
    simulator: float
    machine: float

    @classmethod
    def read(cls, stack: BenchStack, replicas: Sequence[Replica]) -> "_Clock":
        simulator, machine = psutil.Process(stack.simulator_pid).cpu_times(), psutil.cpu_times()
        idle = machine.idle + getattr(machine, "iowait", 0.0)
        # Guests' time is part of the users' time.
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        return cls(
            time.monotonic(), _cpu_seconds(replicas), simulator.user + simulator.system, sum(machine) - guests - idle
        )


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


async def _until_shared_out(stack: BenchStack, environment: Mapping[str, str], service: str, replicas: int) -> None:
    """Wait until so many members share the partitions of the service's group."""
    settings = stack.settings(environment)
    group = f"{settings.kafka_topic_prefix}{service}"
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while await members_of(settings.kafka_bootstrap_servers[0], group) != replicas:  # noqa: ASYNC110 - asked
            await asyncio.sleep(_LOOK_SECONDS)


async def _work_off(stack: BenchStack, shelf: Shelf, turn: int, each: int, replicas: int) -> Speed:
    """The `turn`th part of the sellers' orders; it comes when every replica has its partitions."""
    environment = stack.fresh_topics()
    async with stack.pool() as pool:
        now = await database_now(pool)
        backlog = [
            fetches(seller.token_id, shelf.orders(seller, (turn + 1) * each)[turn * each :], now)
            for seller in shelf.sellers
        ]
        before, count = await pool.fetchval("SELECT count(*) FROM orders"), each * len(shelf.sellers)
        with stack.services(environment, writer=replicas, enricher=replicas) as services:
            for service in services:
                await _until_shared_out(stack, environment, service, replicas)
            await owe(pool, chain.from_iterable(backlog))
            await publish_interleaved(stack, environment, backlog)
            working = [*chain.from_iterable(services.values())]
            first = await _until_stored(pool, before + count // 5)
            begin = _Clock.read(stack, working)
            last = await _until_stored(pool, before + count * 9 // 10)
            end = _Clock.read(stack, working)
    seconds, orders = end.at - begin.at, last - first
    return Speed(
        orders / seconds,
        (end.services - begin.services) / orders * 1000,
        (end.machine - begin.machine) / seconds,
        (end.simulator - begin.simulator) / seconds,
    )


def _typical(speeds: Sequence[Speed]) -> Speed:
    return Speed(*map(median, zip(*map(astuple, speeds), strict=True)))


def _replicas(plan: Plan) -> list[Measure]:
    turns = [*plan.replicas] * plan.rounds
    each = plan.orders // _SELLERS
    simulator = ["--sellers", str(_SELLERS), "--orders", str(2 * each * len(turns)), *NO_LIMITS]
    found: dict[int, list[Speed]] = {replicas: [] for replicas in plan.replicas}
    with bench_stack(simulator, _UNLIMITED) as stack:

        async def prepare() -> Shelf:
            async with stack.pool() as pool:
                shelf = Shelf(await stack.connect_sellers(pool, _SELLERS))
                await shelf.fill(stack, pool, {seller.token_id: each * len(turns) for seller in shelf.sellers})
                return shelf

        shelf = uvloop.run(prepare())
        for turn, replicas in enumerate(turns):
            speed = uvloop.run(_work_off(stack, shelf, turn, each, replicas))
            found[replicas].append(speed)
            say(
                f"{replicas} enrichers and writers: {speed.orders_a_second:.0f} orders/s,"
                f" {speed.cpu_per_thousand:.2f} CPU s for 1000 orders; {speed.busy_cores:.2f} cores are busy,"
                f" {speed.simulator_cores:.2f} of them for the simulated Allegro"
            )
    speeds = {replicas: _typical(each_round) for replicas, each_round in found.items()}
    one = speeds[plan.replicas[0]]
    measures = [
        Measure(
            f"scale: {plan.replicas[0]} enrichers and writers",
            one.orders_a_second,
            "orders/s",
            one.orders_a_second,
            1.0,
            0.0,
        )
    ]
    for replicas, speed in list(speeds.items())[1:]:
        name = f"scale: {replicas} enrichers and writers"
        expected = one.orders_a_second * one.expected(replicas)
        cheaper = one.cpu_per_thousand / speed.cpu_per_thousand
        measures += [
            Measure(
                f"{name}, against what {os.cpu_count()} cores let expect",
                speed.orders_a_second,
                "orders/s",
                expected,
                speed.orders_a_second / expected,
                _GOAL_OF_REPLICAS,
            ),
            Measure(
                f"{name}, cost against {plan.replicas[0]}",
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
        simulator = ["--sellers", str(simulated_sellers(tokens)), "--orders", "0", *NO_LIMITS]
        with bench_stack(simulator, {}) as stack:
            found, request = uvloop.run(look_into(stack, tokens, plan.tokens_seconds))
        poller, postgres = found.cpu_seconds / found.seconds, found.postgres_cpu_seconds / found.seconds
        say(
            f"{tokens} sellers: {found.looks_a_second:.1f} looks/s, {poller:.3f} cores of the poller and {postgres:.3f}"
            f" of PostgreSQL, {request * 1000:.2f} ms of a core for a request; {found.rows} rows;"
            f" the latest was {found.latest_seconds:.1f} s late; {found.memory_bytes / 2**20:.0f} MiB"
        )
        name = f"scale: {tokens} sellers every {INTERVAL_SECONDS} s"
        measures.append(Measure(f"{name}: everything", found.cores, "cores", 1.0, 1.0 / found.cores, 0.0))
        if tokens == plan.tokens:
            measures += _of_round(name, found, request)
    return measures


def _of_round(name: str, found: Round, request: float) -> list[Measure]:
    """The 10 % of a core are for leasing and book-keeping; what Allegro is asked has a cost of its own."""
    due, looks = found.tokens / INTERVAL_SECONDS, found.looks_a_second
    held, late = found.memory_bytes / 2**20, found.latest_seconds
    claims = found.cores - looks * request
    return [
        Measure(f"{name}: without the requests", claims, "cores", _GOAL_CORES, _GOAL_CORES / claims, 1.0),
        Measure(f"{name}: looks", looks, "looks/s", due, looks / due, _GOAL_OF_LOOKS),
        Measure(f"{name}: the latest", late, "s late", _GOAL_LATE_SECONDS, _GOAL_LATE_SECONDS / late, 1.0),
        Measure(f"{name}: rows of empty looks", found.rows, "rows", 0, float(found.rows == 0), 1.0),
        Measure(f"{name}: memory of the poller", held, "MiB", _GOAL_MIB, _GOAL_MIB / held, 1.0),
    ]


@dataclass
class Held:
    """The most memory of each service, in bytes, and its CPU seconds."""

    bytes: dict[str, int] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
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
    held.resident = {one.service: one.most_resident_bytes() for one in replicas}
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
            return bursts_of(token_id, shelf.orders(shelf.sellers[number], each), now, dated=True)

        say(f"publishing {plan.lag} events and {plan.lag_orders} orders")
        await publish_interleaved(
            stack,
            environment,
            [events(seller.token_id, shelf, number) for number, seller in enumerate(shelf.sellers)],
            orders=observed([seller.token_id for seller in shelf.sellers], plan.lag_orders, now),
        )

    uvloop.run(fill())
    say("starting the services")
    with stack.services(environment, **dict.fromkeys(_SERVICES, 1)) as services:
        held = uvloop.run(_watch(services, plan.lag_seconds))
        events, orders = uvloop.run(_stored(stack))
    say(f"{events} events and {orders} orders were stored in {plan.lag_seconds:.0f} s")
    if events >= plan.lag:
        raise RuntimeError("nothing waited any more: this was no lag")
    name = f"lag of {plan.lag} events and {plan.lag_orders} orders"
    return [
        *_memory(held, name),
        *(
            Measure(
                f"scale: RSS of the {service}, {name}", count / 2**20, "MiB", _GOAL_MIB, _GOAL_MIB / (count / 2**20), 0
            )
            for service, count in held.resident.items()
        ),
    ]


async def _stored(stack: BenchStack) -> tuple[int, int]:
    async with stack.pool() as pool:
        row = await pool.fetchrow("SELECT (SELECT count(*) FROM order_events), (SELECT count(*) FROM orders)")
        return int(row[0]), int(row[1])


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
    parser.add_argument("--rounds", type=int, default=3, help="of them, the median counts")
    parser.add_argument("--orders", type=int, default=30_000, help="fetched in each run of replicas")
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--tokens-seconds", type=float, default=45.0, help="for which their looks are watched")
    parser.add_argument("--lag", type=int, default=1_000_000, help="events that wait")
    parser.add_argument("--lag-orders", type=int, default=200_000, help="orders that wait for the writer besides")
    parser.add_argument("--lag-seconds", type=float, default=120.0, help="for which memory is watched")
    parser.add_argument("--idle-seconds", type=float, default=15.0)
    plan = Plan(**vars(parser.parse_args(arguments)))
    if plan.rounds < 1:
        parser.error("--rounds: at least 1")
    measures = [*_tokens(plan), *_replicas(plan), *_services(plan)]
    return 0 if report(measures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
