"""How much of Allegro's allowance is used when there is a backlog, and what one gets for it. `make bench-limits`

Enrichers work off a backlog of single fetches against a simulated Allegro that refuses what exceeds its limits: 9,000
requests a minute for the client id, 1,000 for one seller. With 1, 2 and 4 enrichers and with 1, 10 and 500 sellers,
at least 95 % of what is allowed has to be used and nothing refused. Then the same allowance with five events for each
order: orders a minute, against a client that fetches once for each event and wastes nothing of its allowance.

So that a run does not take hours, the limits' minute is shortened (`--minute-seconds`) and holds as much less: there
are 150 requests a second as in production, and a pause weighs the heavier the shorter the minute is.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from uuid import uuid4

import asyncpg
import uvloop

from benchmarks.report import Measure, report
from benchmarks.stack import BenchStack, Replica, Seller, bench_stack, say
from devstack.allegro import Control
from shared.database import database_now
from shared.kafka import RecordProducer
from shared.messages import OrderEvent, OrderFetch, RawJson, headers

# Allegro's, for a minute of 60 s.
_CLIENT_LIMIT = 9000
_SELLER_LIMIT = 1000
_GOAL = 0.95
_EVENTS_PER_ORDER = 5
_PAGE = 100
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    replicas: Sequence[int]
    sellers: Sequence[int]
    minute_seconds: float
    minutes: float

    @property
    def widest(self) -> int:
        return max(self.sellers)

    @property
    def client_limit(self) -> int:
        """Requests a shortened minute, of all sellers together."""
        return round(_CLIENT_LIMIT * self.minute_seconds / 60)

    @property
    def seller_limit(self) -> int:
        return round(_SELLER_LIMIT * self.minute_seconds / 60)

    def allowed(self, sellers: int) -> int:
        """Requests a shortened minute, of so many sellers."""
        return min(self.client_limit, sellers * self.seller_limit)

    def backlog(self, sellers: int) -> int:
        """Orders of each seller: one minute to come into step, the measured ones, and some that are left over."""
        return int(self.allowed(sellers) * (self.minutes + 2) / sellers) + 1


@dataclass(frozen=True)
class Order:
    """An order that Allegro has."""

    order_id: str
    bought_at: datetime


class Shelf:
    """Orders of the sellers, listed once and used by every run."""

    def __init__(self, sellers: Sequence[Seller]) -> None:
        self.sellers = sellers
        self._orders: dict[int, list[Order]] = {}

    async def fill(self, stack: BenchStack, pool: asyncpg.Pool, plan: Plan) -> None:
        wanted = {
            seller.token_id: max(plan.backlog(count) for count in plan.sellers if count > number)
            for number, seller in enumerate(self.sellers)
        }
        now = await database_now(pool)
        async with stack.allegro(pool) as allegro:

            async def one(token_id: int, count: int) -> None:
                orders: dict[str, Order] = {}
                position = now - timedelta(days=360)
                while len(orders) < count:
                    page = await allegro.client.list_orders(
                        token_id, bought_from=position, bought_to=now, traffic="live"
                    )
                    for listed in page.orders:
                        if listed.bought_at is not None:
                            orders[listed.order_id] = Order(listed.order_id, listed.bought_at)
                            position = listed.bought_at
                    if len(page.orders) < _PAGE:
                        break
                self._orders[token_id] = list(orders.values())

            await asyncio.gather(*(one(token_id, count) for token_id, count in wanted.items()))

    def orders(self, seller: Seller, count: int) -> list[Order]:
        orders = self._orders[seller.token_id]
        if len(orders) < count:
            raise RuntimeError(f"the simulated seller has {len(orders)} orders, {count} are needed")
        return orders[:count]


def _fetches(token_id: int, orders: Iterable[Order], now: datetime) -> list[OrderFetch]:
    """Looks that are owed and that no list page can serve."""
    return [OrderFetch(token_id=token_id, order_id=order.order_id, wanted_after=now) for order in orders]


def _bursts(token_id: int, orders: Iterable[Order], now: datetime) -> list[OrderEvent]:
    """Several new events of each order, as the journal has them: one after the other."""
    run_id = uuid4()
    position = int(now.timestamp() * 1_000_000)
    records = []
    for order in orders:
        for _ in range(_EVENTS_PER_ORDER):
            position += 1
            records.append(
                OrderEvent(
                    token_id=token_id,
                    event_id=position,
                    follows_event_id=position - 1,
                    event_type="READY_FOR_PROCESSING",
                    order_id=order.order_id,
                    wanted_after=now,
                    run_id=run_id,
                    run_last_event_id=position,
                    event=RawJson(b"{}"),
                )
            )
    return records


async def _publish(
    stack: BenchStack, environment: Mapping[str, str], records: Sequence[Sequence[OrderFetch | OrderEvent]]
) -> None:
    """Every seller's records, a piece of one after a piece of the other."""
    settings = stack.settings(environment)
    carried = headers(correlation_id="bench")
    async with RecordProducer(settings, service="benchmark") as producer:
        iterators = [iter(each) for each in records]
        while pieces := [piece for piece in (list(islice(one, 200)) for one in iterators) if piece]:
            for piece in pieces:
                await producer.publish_all(
                    settings.topics.order_events, [(record.key, record.encode(), carried) for record in piece]
                )


async def _asked(control: Control) -> int:
    return (await control.requests()).get("detail", 0)


async def _until_asked(control: Control, count: int) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            if await _asked(control) >= count:
                return
            await asyncio.sleep(_LOOK_SECONDS)


@dataclass(frozen=True)
class Use:
    """What became of the allowance."""

    used_share: float
    refused: int
    requests_a_second: float
    cores: float


async def _measure(stack: BenchStack, plan: Plan, sellers: int, enrichers: Sequence[Replica]) -> Use:
    """One minute to come into step, then the share that is used of the next ones."""
    allowed = plan.allowed(sellers)
    async with stack.control() as control:
        refused_before = (await control.stats())["too_many_requests"]
        start = await _asked(control)
        await _until_asked(control, start + 1)
        await asyncio.sleep(plan.minute_seconds)
        begin, began, cpu = await _asked(control), time.monotonic(), _cpu_seconds(enrichers)
        await asyncio.sleep(plan.minute_seconds * plan.minutes)
        asked, seconds = await _asked(control) - begin, time.monotonic() - began
        cores = (_cpu_seconds(enrichers) - cpu) / seconds
        minutes = seconds / plan.minute_seconds
        refused = (await control.stats())["too_many_requests"] - refused_before
    return Use(asked / (allowed * minutes), refused, asked / seconds, cores)


def _cpu_seconds(replicas: Iterable[Replica]) -> float:
    return sum(replica.cpu_seconds() for replica in replicas)


def _run(stack: BenchStack, plan: Plan, shelf: Shelf, sellers: int, replicas: int, *, bursts: bool = False) -> Use:
    environment = stack.fresh_topics()
    make = _bursts if bursts else _fetches

    async def publish() -> None:
        async with stack.pool() as pool:
            now = await database_now(pool)
        chosen = shelf.sellers[:sellers]
        backlog = [make(seller.token_id, shelf.orders(seller, plan.backlog(sellers)), now) for seller in chosen]
        await _publish(stack, environment, backlog)

    uvloop.run(publish())
    with stack.services(environment, enricher=replicas, writer=1) as services:
        use = uvloop.run(_measure(stack, plan, sellers, services["enricher"]))
    time.sleep(plan.minute_seconds)  # the run leaves the limits' sliding minute
    return use


def _budget(stack: BenchStack, plan: Plan, shelf: Shelf) -> list[Measure]:
    measures = []
    for replicas in plan.replicas:
        for sellers in plan.sellers:
            use = _run(stack, plan, shelf, sellers, replicas)
            name = f"{replicas} enrichers, {sellers} sellers"
            say(f"{name}: {use.used_share:.1%} used, {use.refused} refused, {use.cores:.2f} cores")
            measures += [
                Measure(f"limits: used share, {name}", use.used_share, "of the allowance", 1.0, use.used_share, _GOAL),
                Measure(f"limits: refused, {name}", use.refused, "answers 429", 0, 1.0 if use.refused == 0 else 0.0, 1),
            ]
    return measures


def _orders_a_minute(stack: BenchStack, plan: Plan, shelf: Shelf) -> Measure:
    """Every burst becomes one fetch: its requests are as many orders."""
    sellers = min(plan.widest, 10)
    use = _run(stack, plan, shelf, sellers, 1, bursts=True)
    orders = use.requests_a_second * 60
    reference = plan.allowed(sellers) * 60 / plan.minute_seconds / _EVENTS_PER_ORDER
    say(f"bursts of {_EVENTS_PER_ORDER} events: {orders:.0f} orders a minute")
    return Measure(
        f"limits: orders a minute at {_EVENTS_PER_ORDER} events each, {sellers} sellers",
        orders,
        "orders/min",
        reference,
        orders / reference,
        _GOAL * _EVENTS_PER_ORDER,
    )


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="of the enricher")
    parser.add_argument("--sellers", type=int, nargs="+", default=[1, 10, 500])
    parser.add_argument("--minute-seconds", type=float, default=20.0, help="length of the limits' minute")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the limits, measured in each run")
    plan = Plan(**vars(parser.parse_args(arguments)))
    simulator = [
        *("--sellers", str(plan.widest)),
        *("--orders", str(max(map(plan.backlog, plan.sellers)) * 2)),
        *("--client-limit", str(plan.client_limit), "--detail-limit", str(plan.seller_limit), "--list-limit", "0"),
        *("--time-scale", str(60 / plan.minute_seconds)),
    ]
    limits = {
        "ALLEGRO_LIMIT_MINUTE_SECONDS": str(plan.minute_seconds),
        "ALLEGRO_CLIENT_LIMIT_PER_MINUTE": str(plan.client_limit),
        "ALLEGRO_DETAIL_LIMIT_PER_MINUTE": str(plan.seller_limit),
    }
    with bench_stack(simulator, limits) as stack:

        async def prepare() -> Shelf:
            async with stack.pool() as pool:
                shelf = Shelf(await stack.connect_sellers(pool, plan.widest))
                say(f"{plan.widest} sellers are connected")
                await shelf.fill(stack, pool, plan)
                return shelf

        shelf = uvloop.run(prepare())
        say("their orders are listed")
        time.sleep(plan.minute_seconds)  # so is what that cost
        measures = _budget(stack, plan, shelf)
        measures.append(_orders_a_minute(stack, plan, shelf))
    return 0 if report(measures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
