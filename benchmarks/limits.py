"""How much of Allegro's allowance is used when there is a backlog, and what one gets for it. `make bench-limits`

Enrichers work off a backlog of single fetches against a simulated Allegro that refuses what exceeds its limits: 9,000
requests a minute for the client id, 1,000 for one seller. With 1, 2 and 4 enrichers and with 1, 10 and 500 sellers,
at least 95 % of what is allowed has to be used and nothing refused, though one answer in fifty is a failure, or none.
Then the same allowance with five events for each order: different orders that are committed in a minute, against the
best that a client can do that fetches once for each event. That client is not run: it is taken to use every request it
is allowed, which nobody does, and to get an answer to each, so there are no failures in this part. The events
themselves are stored before the enricher starts: how fast the writer takes a flood of them is not the question here.

So that a run does not take hours, the limits' minute is shortened (`--minute-seconds`) and holds as much less: there
are 150 requests a second as in production, and a pause weighs the heavier the shorter the minute is.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

import asyncpg
import uvloop

from benchmarks.backlog import EVENTS_PER_ORDER, Shelf, bursts_of, fetches, owe, publish_interleaved
from benchmarks.report import Measure, report
from benchmarks.stack import BenchStack, Replica, Seller, bench_stack, say
from devstack.allegro import Control
from shared.database import database_now

# Allegro's, for a minute of 60 s.
_CLIENT_LIMIT = 9000
_SELLER_LIMIT = 1000
_GOAL = 0.95
_FAULTS = {
    "http_5xx": 0.01,
    "cut_connection": 0.005,
    "malformed_json": 0.005,
    "slow_body": {"rate": 0.005, "amount": 3},
}
_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0
_STORING_SECONDS = 600.0
_STORED = "SELECT count(*) FROM orders WHERE observed_at >= $1"


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

    def wanted(self, sellers: Sequence[Seller]) -> dict[int, int]:
        """Orders that each token needs for the largest of its runs."""
        return {
            seller.token_id: max(self.backlog(count) for count in self.sellers if count > number)
            for number, seller in enumerate(sellers)
        }


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
    requests: int
    orders: int
    """Different ones whose look was committed meanwhile."""
    seconds: float
    cores: float

    @property
    def orders_a_minute(self) -> float:
        return self.orders / self.seconds * 60


@dataclass(frozen=True)
class _Reading:
    """Where everything stands at one moment."""

    at: float
    asked: int
    stored: int
    cpu_seconds: float


async def _read(control: Control, pool: asyncpg.Pool, enrichers: Sequence[Replica], published_at: datetime) -> _Reading:
    """Orders that were stored by former runs count only when they are looked at again."""
    asked, stored = await asyncio.gather(_asked(control), pool.fetchval(_STORED, published_at))
    return _Reading(time.monotonic(), asked, stored, sum(one.cpu_seconds() for one in enrichers))


async def _measure(
    stack: BenchStack, plan: Plan, sellers: int, enrichers: Sequence[Replica], published_at: datetime
) -> Use:
    """One minute to come into step, then the share that is used of the next ones."""
    async with stack.control() as control, stack.pool() as pool:
        refused_before = (await control.stats())["too_many_requests"]
        await _until_asked(control, await _asked(control) + 1)
        await asyncio.sleep(plan.minute_seconds)
        begin = await _read(control, pool, enrichers, published_at)
        await asyncio.sleep(plan.minute_seconds * plan.minutes)
        end = await _read(control, pool, enrichers, published_at)
        refused = (await control.stats())["too_many_requests"] - refused_before
    seconds = end.at - begin.at
    allowed = plan.allowed(sellers) * seconds / plan.minute_seconds
    asked = end.asked - begin.asked
    cores = (end.cpu_seconds - begin.cpu_seconds) / seconds
    return Use(asked / allowed, refused, asked, end.stored - begin.stored, seconds, cores)


def _run(stack: BenchStack, plan: Plan, shelf: Shelf, sellers: int, replicas: int, *, bursts: bool = False) -> Use:
    environment = stack.fresh_topics()
    orders = {seller.token_id: shelf.orders(seller, plan.backlog(sellers)) for seller in shelf.sellers[:sellers]}

    async def publish() -> datetime:
        async with stack.pool() as pool:
            now = await database_now(pool)
            if bursts:
                await owe(pool, ())
                events = [bursts_of(token_id, each, now) for token_id, each in orders.items()]
                await publish_interleaved(stack, environment, events)
            else:
                looks = [fetches(token_id, each, now) for token_id, each in orders.items()]
                await owe(pool, chain.from_iterable(looks))
                await publish_interleaved(stack, environment, looks)
        return now

    began = time.monotonic()
    published_at = uvloop.run(publish())
    # The run before leaves the limits' sliding minute.
    time.sleep(max(plan.minute_seconds - (time.monotonic() - began), 0))
    with stack.services(environment, writer=1):
        if bursts:
            uvloop.run(_until_events_are_stored(stack, sellers * plan.backlog(sellers) * EVENTS_PER_ORDER))
        with stack.services(environment, enricher=replicas) as services:
            return uvloop.run(_measure(stack, plan, sellers, services["enricher"], published_at))


async def _until_events_are_stored(stack: BenchStack, count: int) -> None:
    async with stack.pool() as pool, asyncio.timeout(_STORING_SECONDS):
        while await pool.fetchval("SELECT count(*) FROM order_events") < count:  # noqa: ASYNC110 - another process' work
            await asyncio.sleep(_LOOK_SECONDS)


def _refused(use: Use, name: str) -> Measure:
    return Measure(f"limits: refused, {name}", use.refused, "answers 429", 0, 1.0 if use.refused == 0 else 0.0, 1)


def _budget(stack: BenchStack, plan: Plan, shelf: Shelf) -> list[Measure]:
    measures = []
    for replicas in plan.replicas:
        for sellers in plan.sellers:
            use = _run(stack, plan, shelf, sellers, replicas)
            name = f"{replicas} enrichers, {sellers} sellers"
            say(f"{name}: {use.used_share:.1%} used, {use.refused} refused, {use.cores:.2f} cores")
            measures += [
                Measure(f"limits: used share, {name}", use.used_share, "of the allowance", 1.0, use.used_share, _GOAL),
                _refused(use, name),
            ]
    return measures


def _orders_a_minute(stack: BenchStack, plan: Plan, shelf: Shelf) -> list[Measure]:
    """Every burst can become one fetch: what is counted are the orders, not the requests for them."""
    sellers = min(plan.widest, 10)
    use = _run(stack, plan, shelf, sellers, 1, bursts=True)
    reference = plan.allowed(sellers) * 60 / plan.minute_seconds / EVENTS_PER_ORDER
    say(
        f"bursts of {EVENTS_PER_ORDER} events: {use.orders_a_minute:.0f} orders a minute,"
        f" {use.requests / max(use.orders, 1):.2f} fetches each; {use.used_share:.1%} used, {use.refused} refused,"
        f" {use.cores:.2f} cores"
    )
    return [
        Measure(
            f"limits: orders committed at {EVENTS_PER_ORDER} events each, against a fetch for each event",
            use.orders_a_minute,
            "orders/min",
            reference,
            use.orders_a_minute / reference,
            _GOAL * EVENTS_PER_ORDER,
        ),
        _refused(use, f"{EVENTS_PER_ORDER} events for each order"),
    ]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4], help="of the enricher")
    parser.add_argument("--sellers", type=int, nargs="+", default=[1, 10, 500])
    parser.add_argument("--minute-seconds", type=float, default=15.0, help="length of the limits' minute")
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
                await shelf.fill(stack, pool, plan.wanted(shelf.sellers))
                return shelf

        async def fail(faults: Mapping[str, object]) -> None:
            async with stack.control() as control:
                await control.set_faults(faults)

        shelf = uvloop.run(prepare())
        say("their orders are listed")
        uvloop.run(fail(_FAULTS))
        measures = _budget(stack, plan, shelf)
        uvloop.run(fail({}))
        measures += _orders_a_minute(stack, plan, shelf)
    return 0 if report(measures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
