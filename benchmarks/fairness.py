"""Does one seller's initial load delay another seller's new orders? `make bench-fairness`

One seller has 100,000 orders loaded; meanwhile others sell. Each of their new orders has to be in PostgreSQL within the
interval between two looks into a journal and 2 s, counted from the moment when the event became visible (promise P4).

Allegro's answers to the load are as bad as they get: pages that repeat and skip orders, totals that lie, failures.

The limits' minute is shortened to a quarter, and holds as many list pages as Allegro's does: the load is four
times as fast as it could be in production. The client id's limit holds as much less: 150 requests a second.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
import uvloop

from benchmarks.report import Measure, report
from benchmarks.stack import BenchStack, bench_stack, give_schedules, say
from benchmarks.waiting import Wait, note_looks, quantile, stages, waits
from shared.sync_start import begin_sync

_MINUTE_SECONDS = 15.0
_CLIENT_LIMIT = 2250
_MORE_SECONDS = 2.0
_LONGEST_LOAD_SECONDS = 900.0
_HISTORY_DAYS = 360
_FAULTS = {
    "list_repeat": 0.1,
    "list_skip": 0.05,
    "list_slip": 0.05,
    "total_count_lies": 0.1,
    "http_5xx": 0.02,
    "cut_connection": 0.01,
    "malformed_json": 0.01,
}


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    orders: int
    sellers: int
    rate: float
    interval: int


@dataclass(frozen=True)
class Outcome:
    """What the others waited while the load went on, and how long it took."""

    waits: Sequence[Wait]
    load_seconds: float


async def _until_loading(pool: asyncpg.Pool, token_id: int) -> None:
    async with asyncio.timeout(_LONGEST_LOAD_SECONDS):
        while True:
            if await pool.fetchval("SELECT EXISTS (SELECT FROM orders WHERE user_token_id = $1)", token_id):
                return
            await asyncio.sleep(0.2)


async def _until_loaded(pool: asyncpg.Pool, token_id: int) -> None:
    async with asyncio.timeout(_LONGEST_LOAD_SECONDS):
        while True:
            status = await pool.fetchval("SELECT status FROM task_history WHERE user_token_id = $1", token_id)
            if status not in ("queued", "running"):
                break
            await asyncio.sleep(0.5)
    if status != "completed":
        raise RuntimeError(f"the load ended as {status}")


async def _measure(stack: BenchStack, plan: Plan) -> Outcome:
    async with stack.pool() as pool, stack.control() as control:
        await note_looks(pool)
        loading, *others = await stack.connect_sellers(pool, plan.sellers + 1)
        await control.set_faults(
            {name: {"rate": rate, "sellers": [loading.seller_id]} for name, rate in _FAULTS.items()}
        )
        with stack.services(stack.environment(), poller=1, enricher=1, writer=1):
            spread = timedelta(seconds=plan.interval)
            await give_schedules(pool, others, interval_seconds=plan.interval, spread=spread)
            async with pool.acquire() as connection, connection.transaction():
                await begin_sync(
                    connection, loading.token_id, interval=spread, full_interval=timedelta(days=_HISTORY_DAYS)
                )
            await _until_loading(pool, loading.token_id)
            began, since = time.monotonic(), time.time_ns() // 1000
            say("loading")
            await control.start_live(
                1_000_000, plan.rate, events_per_order=1, history=0, sellers=[one.seller_id for one in others]
            )
            await _until_loaded(pool, loading.token_id)
            load_seconds, until = time.monotonic() - began, time.time_ns() // 1000
            say(f"{plan.orders} orders were loaded in {load_seconds:.0f} s")
            await asyncio.sleep(2 * plan.interval + 10)
            planned = plan.rate * load_seconds
            found = await waits(stack, pool, others, since=since, until=until, planned=planned)
            return Outcome(found, load_seconds)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--orders", type=int, default=100_000, help="of the seller that is loaded")
    parser.add_argument("--sellers", type=int, default=20, help="others, that sell meanwhile")
    parser.add_argument("--rate", type=float, default=10.0, help="their new orders a second")
    parser.add_argument("--interval", type=int, default=5, help="seconds between two looks into a journal")
    plan = Plan(**vars(parser.parse_args(arguments)))
    simulator = [
        *("--sellers", str(plan.sellers + 1), "--orders", str(plan.orders), "--history-days", str(_HISTORY_DAYS)),
        *("--client-limit", str(_CLIENT_LIMIT), "--time-scale", str(60 / _MINUTE_SECONDS), "--note-served"),
    ]
    environment = {
        "ALLEGRO_LIMIT_MINUTE_SECONDS": str(_MINUTE_SECONDS),
        "ALLEGRO_CLIENT_LIMIT_PER_MINUTE": str(_CLIENT_LIMIT),
    }
    with bench_stack(simulator, environment, commit_times=True) as stack:
        outcome = uvloop.run(_measure(stack, plan))
        refused = uvloop.run(_refused(stack))
    waited = [(wait.committed - wait.visible) / 1_000_000 for wait in outcome.waits]
    p99, allowed = quantile(waited, 0.99), plan.interval + _MORE_SECONDS
    say(f"{len(waited)} new orders of others; half of them within {quantile(waited, 0.5):.1f} s, {refused} answers 429")
    say(f"p50 (p99) in ms: {stages(outcome.waits)}")
    say(f"{plan.orders / outcome.load_seconds:.0f} orders/s were loaded")
    name = f"fairness: new orders while {plan.orders} are loaded for another seller, p99"
    return 0 if report([Measure(name, p99, "s from visible to committed", allowed, allowed / p99, 1.0)]) else 1


async def _refused(stack: BenchStack) -> int:
    async with stack.control() as control:
        return int((await control.stats())["too_many_requests"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
