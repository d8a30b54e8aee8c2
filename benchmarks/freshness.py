"""How fresh the copy is: from an event's being shown by the journal to the committed look at its order.
`make bench-freshness`

The whole product with one replica of each service, 500 sellers, 150 events a second, three events for each order, all
of Allegro's limits in force. How long an event waits for the next look into its journal is the schedule's choice
(`--interval`), so it is left out: time is counted from the moment when Allegro first shows the event.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import uvloop

from benchmarks.report import Measure, report
from benchmarks.stack import BenchStack, bench_stack, give_schedules, say
from benchmarks.waiting import Wait, note_looks, quantile, stages, waits

_GOAL_P50_MS = 150.0
_GOAL_P99_MS = 1000.0
_EVENTS_PER_ORDER = 3
_LONGEST_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What the command line says."""

    sellers: int
    rate: float
    seconds: float
    interval: int


async def _measure(stack: BenchStack, plan: Plan) -> list[Wait]:
    async with stack.pool() as pool, stack.control() as control:
        await note_looks(pool)
        sellers = await stack.connect_sellers(pool, plan.sellers)
        say(f"{plan.sellers} sellers are connected")
        environment = stack.fresh_topics()
        with stack.services(environment, poller=1, enricher=1, writer=1):
            await give_schedules(pool, sellers, interval_seconds=plan.interval, spread=timedelta(seconds=plan.interval))
            warm_up = float(plan.interval) + 5
            live_seconds = warm_up + plan.seconds + plan.interval
            orders = plan.rate / _EVENTS_PER_ORDER
            await control.start_live(int(orders * live_seconds), orders, events_per_order=_EVENTS_PER_ORDER, history=0)
            await asyncio.sleep(warm_up)
            since = time.time_ns() // 1000
            say("measuring")
            await asyncio.sleep(plan.seconds)
            until = time.time_ns() // 1000
            await asyncio.sleep(plan.interval * 1.1 + _LONGEST_WAIT_SECONDS)
            planned = plan.rate * plan.seconds
            return await waits(stack, pool, sellers, since=since, until=until, planned=planned)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freshness", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sellers", type=int, default=500)
    parser.add_argument("--rate", type=float, default=150.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="that are measured")
    parser.add_argument("--interval", type=int, default=30, help="seconds between two looks into a journal")
    plan = Plan(**vars(parser.parse_args(arguments)))
    simulator = ["--sellers", str(plan.sellers), "--orders", "50", "--note-served"]
    with bench_stack(simulator, {}, commit_times=True) as stack:
        found = uvloop.run(_measure(stack, plan))
    fresh = [(wait.committed - wait.served) / 1000 for wait in found]
    rate = len(found) / plan.seconds
    say(f"{len(found)} events, {rate:.1f} a second, of {plan.sellers} sellers; slowest: {max(fresh):.0f} ms")
    say(f"p50 (p99) in ms: {stages(found)}")
    p50, p99 = quantile(fresh, 0.5), quantile(fresh, 0.99)
    name = f"freshness at {plan.rate:g} events/s of {plan.sellers} sellers"
    met = report(
        [
            Measure(f"{name}: p50", p50, "ms from shown to committed", _GOAL_P50_MS, _GOAL_P50_MS / p50, 1.0),
            Measure(f"{name}: p99", p99, "ms from shown to committed", _GOAL_P99_MS, _GOAL_P99_MS / p99, 1.0),
        ]
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
