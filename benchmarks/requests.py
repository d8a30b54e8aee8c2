"""How many requests the work costs (promise P6): `make bench-requests`

A count, not a timing: the real services ask a simulated Allegro without limits, and it counts. What is asked about
orders is counted (lists, single orders, statistics of events), reading the journal and refreshing tokens is not.

- **initial load** of a new seller.
- **bursts**: five events an order within a fifth of a second, all in the journal before anybody looks.
- **live bursts**: the same, while the journals are read every ten seconds.
- **catching up**: twenty days of a journal that nobody read.
- **reconciliation** of a seller whose orders are all stored as they are: a page for each hundred, and one to see that
  there are no more.

And once more **with faults**: Allegro's journal leaves events out, repeats, delays and shuffles them, `event-stats` is
null, the list lags, of its pages 1 % each repeat, skip, slip and count wrongly, and 1 % of the calls fail.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta

import asyncpg
import uvloop

from benchmarks.report import Measure, report
from benchmarks.stack import NO_LIMITS, BenchStack, Seller, bench_stack, give_schedules, say
from shared.sync_start import begin_sync

_ALLOWED = {"initial load": 0.011, "bursts of 5 events": 1.05, "live bursts of 5 events": 1.05, "catching up": 0.05}
_FAULTS = {
    "journal_missing": 0.01,
    "journal_duplicate": 0.05,
    "journal_late": {"rate": 0.02, "amount": 7200},
    "journal_shuffle": {"rate": 0.1, "amount": 3},
    "event_stats_null": 1.0,
    "list_lag_seconds": 5.0,
    "list_repeat": 0.01,
    "list_skip": 0.01,
    "list_slip": 0.01,
    "total_count_lies": 0.01,
    "http_5xx": {"rate": 0.01, "endpoints": ["list", "detail"]},
}
_SELLERS = 6
_RECONCILIATION = "reconciliation"
_PAGE = 100
_ABOUT_ORDERS = ("list", "detail", "event_stats")
_EVENTS_PER_ORDER = 5
_BURSTS_A_SECOND = 400.0
_INTERVAL_SECONDS = 2
_LIVE_INTERVAL_SECONDS = 10
# A fault delays an event by three seconds at most, or by hours.
_QUIET_SECONDS = 5.0
_LIVE_ORDERS_A_SECOND = 40.0
_CATCH_UP = timedelta(days=20)
# All of a seller's past is young enough for the journal.
_HISTORY_DAYS = 50
_LOOK_SECONDS = 0.2
_PATIENCE_SECONDS = 600.0
# What may be on its way: an order that is owed, a task, a journal read further than stored.
_NOTHING_LEFT = """
SELECT NOT EXISTS (SELECT FROM pending_fetches)
   AND NOT EXISTS (SELECT FROM task_history WHERE status IN ('queued', 'running'))
   AND NOT EXISTS (SELECT FROM journal_cursors WHERE published_event_id > stored_event_id)
"""


class Count:
    """The stack, and what was asked since the last time."""

    def __init__(self, stack: BenchStack, pool: asyncpg.Pool, suffix: str) -> None:
        self.stack = stack
        self.pool = pool
        self._suffix = suffix
        self._before = 0

    async def of(
        self, name: str, sellers: Sequence[Seller], come: Callable[[], Awaitable[int]], *, live: bool = False
    ) -> Measure:
        """Let the services work until these sellers have the events that `come`, before that or meanwhile (`live`), and
        nothing is left to do."""
        token_ids = [seller.token_id for seller in sellers]
        events = 0 if live else await come()
        with self.stack.services(self.stack.environment(), poller=1, enricher=1, writer=1):
            events = await come() if live else events
            await self._until(
                "SELECT count(*) >= $2 FROM order_events WHERE user_token_id = ANY($1)", token_ids, events
            )
            await self._until(_NOTHING_LEFT)
            spent = await self._asked()
        spent, self._before = spent - self._before, spent
        orders = await self.pool.fetchval("SELECT count(*) FROM orders WHERE user_token_id = ANY($1)", token_ids)
        say(f"{name}: {spent} requests for {orders} orders")
        if not spent:
            raise RuntimeError(f"{name}: nothing was asked at all")
        cost, allowed = spent / orders, _ALLOWED.get(name) or _pages(orders) / orders
        # What a wrong page leaves out has to be looked at: then something differs, and there is no promise.
        goal = 0.0 if name == _RECONCILIATION and self._suffix else 1.0
        return Measure(f"requests: {name}{self._suffix}", cost, "requests an order", allowed, allowed / cost, goal)

    async def _asked(self) -> int:
        async with self.stack.control() as control:
            requests = await control.requests()
        return sum(requests.get(endpoint, 0) for endpoint in _ABOUT_ORDERS)

    async def _until(self, question: str, *arguments: object) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not await self.pool.fetchval(question, *arguments):  # noqa: ASYNC110 - other processes' work
                await asyncio.sleep(_LOOK_SECONDS)


def _pages(orders: int) -> int:
    """Of a list that is read to its end: a full page does not say that it is the last one."""
    return -(-orders // _PAGE) + 1


async def _initial_load(count: Count, seller: Seller) -> Measure:
    async with count.pool.acquire() as connection, connection.transaction():
        await begin_sync(
            connection,
            seller.token_id,
            interval=timedelta(seconds=_INTERVAL_SECONDS),
            full_interval=timedelta(days=_HISTORY_DAYS),
        )
    return await count.of("initial load", [seller], lambda: _events(count.stack, seller, since=0))


async def _bursts(count: Count, sellers: Sequence[Seller], orders: int) -> Measure:
    await give_schedules(count.pool, sellers, interval_seconds=_INTERVAL_SECONDS)
    return await count.of(
        "bursts of 5 events", sellers, lambda: _sell(count.stack, sellers, orders, rate=_BURSTS_A_SECOND)
    )


async def _live_bursts(count: Count, sellers: Sequence[Seller], orders: int) -> Measure:
    await give_schedules(count.pool, sellers, interval_seconds=_LIVE_INTERVAL_SECONDS)
    return await count.of(
        "live bursts of 5 events",
        sellers,
        lambda: _sell(count.stack, sellers, orders, rate=_LIVE_ORDERS_A_SECOND),
        live=True,
    )


async def _sell(stack: BenchStack, sellers: Sequence[Seller], orders: int, *, rate: float) -> int:
    """Let so many orders be bought; returns the number of their events, but for those that come hours late."""
    async with stack.control() as control:
        await control.start_live(
            orders,
            rate,
            events_per_order=_EVENTS_PER_ORDER,
            step_seconds=0.05,
            history=0,
            sellers=[seller.seller_id for seller in sellers],
        )
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                before = await control.live()
                await asyncio.sleep(_QUIET_SECONDS)
                live = await control.live()
                is_quiet = live["events_written"] == before["events_written"]
                if is_quiet and not live["remaining"] and not live["steps_to_come"]:
                    return int(live["events_written"])


async def _catching_up(count: Count, seller: Seller) -> Measure:
    await give_schedules(count.pool, [seller], interval_seconds=_INTERVAL_SECONDS)
    cursor = await count.pool.fetchval(
        "UPDATE journal_cursors SET stored_event_id = stored_event_id - $2, covered_event_id = 1"
        " WHERE user_token_id = $1 RETURNING stored_event_id",
        seller.token_id,
        _CATCH_UP // timedelta(microseconds=1),
    )
    return await count.of("catching up", [seller], lambda: _events(count.stack, seller, since=cursor))


async def _reconciliation(count: Count, seller: Seller) -> Measure:
    await count.pool.execute(
        "INSERT INTO task_history (task_id, user_token_id, user_id, kind)"
        " SELECT gen_random_uuid(), id, user_id, 'reconcile' FROM user_tokens WHERE id = $1",
        seller.token_id,
    )
    return await count.of(_RECONCILIATION, [seller], _none)


async def _events(stack: BenchStack, seller: Seller, *, since: int) -> int:
    count = 0
    async with stack.control() as control:
        async for line in control.ledger("events", seller.seller_id):
            count += int(json.loads(line)["event_id"]) > since
    return count


async def _none() -> int:
    return 0


async def _measure(stack: BenchStack, orders: int, faults: Mapping[str, object], suffix: str) -> list[Measure]:
    async with stack.control() as control:
        await control.set_faults(faults)
    async with stack.pool() as pool:
        count = Count(stack, pool, suffix)
        loaded, late, *selling = await stack.connect_sellers(pool, _SELLERS)
        return [
            await _initial_load(count, loaded),
            await _reconciliation(count, loaded),
            await _catching_up(count, late),
            await _bursts(count, selling[:2], orders // 5),
            await _live_bursts(count, selling[2:], orders // 5),
        ]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.requests", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=10_000, help="of a seller; a fifth as many in bursts")
    orders = parser.parse_args(arguments).orders
    simulator = ["--sellers", str(_SELLERS), "--orders", str(orders), "--history-days", str(_HISTORY_DAYS), *NO_LIMITS]
    measures: list[Measure] = []
    for faults, suffix in (({}, ""), (_FAULTS, ", with faults")):
        with bench_stack(simulator, {"SYNC_LIST_LAG_SECONDS": "10"}) as stack:
            measures += uvloop.run(_measure(stack, orders, faults, suffix))
    return 0 if report(measures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
