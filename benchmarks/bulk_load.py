"""Memory of a bulk load: that of 100,000 orders of one seller beside that of 10,000 (promise P10).
`make bench-bulk-load`

One replica of each service, no limits. In the middle of the large load the enricher and the writer are killed and
started again: the load goes on where it is stored. Memory is what a process holds by itself (USS), at its peak.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta

import asyncpg
import uvloop

from benchmarks.report import Measure, report
from benchmarks.stack import NO_LIMITS, BenchStack, Replica, bench_stack, say
from shared.sync_start import begin_sync

# A large load may hold this much more than a small one: buffers that are full, and the allocator's leftovers.
_GOAL = 0.75
_LOOK_SECONDS = 0.25
_SERVICES = ("poller", "enricher", "writer")
# The journal, which is read beside it, has runs of its own.
_INITIAL = "SELECT orders_processed, completed_at IS NOT NULL AS ended FROM sync_history WHERE kind = 'initial'"
_UNLIMITED = {
    "ALLEGRO_CLIENT_LIMIT_PER_MINUTE": "100000000",
    "ALLEGRO_LIST_LIMIT_PER_MINUTE": "100000000",
    "ALLEGRO_EVENTS_LIMIT_PER_MINUTE": "100000000",
}


@dataclass
class Load:
    """What one load took."""

    seconds: float = 0.0
    orders: int = 0
    peaks: dict[str, int] = field(default_factory=dict)

    def note(self, replicas: Sequence[Replica]) -> None:
        for replica in replicas:
            held = replica.memory_bytes()
            self.peaks[replica.service] = max(self.peaks.get(replica.service, 0), held)


async def _processed(pool: asyncpg.Pool) -> tuple[int, bool]:
    """What the load has counted so far, and whether it has ended."""
    row = await pool.fetchrow(_INITIAL)
    return (0, False) if row is None else (row["orders_processed"], row["ended"])


async def _load(stack: BenchStack, *, kill_at: int | None) -> Load:
    load = Load()
    async with stack.pool() as pool:
        (seller,) = await stack.connect_sellers(pool, 1)
        environment = stack.fresh_topics(partitions=3)
        with ExitStack() as running:
            replicas = _start(stack, running, environment, *_SERVICES)
            async with pool.acquire() as connection, connection.transaction():
                await begin_sync(
                    connection, seller.token_id, interval=timedelta(days=1), full_interval=timedelta(days=10)
                )
            began = time.monotonic()
            ended = False
            while not ended:
                await asyncio.sleep(_LOOK_SECONDS)
                load.note(replicas)
                load.orders, ended = await _processed(pool)
                if kill_at is not None and load.orders >= kill_at:
                    kill_at = None
                    say(f"killed at {load.orders} orders")
                    killed = [replica for replica in replicas if replica.service != "poller"]
                    for replica in killed:
                        replica.kill()
                    replicas = [one for one in replicas if one not in killed]
                    replicas += _start(stack, running, environment, "enricher", "writer")
            load.seconds = time.monotonic() - began
            stored = await pool.fetchval("SELECT count(*) FROM orders")
            if stored != load.orders:
                raise RuntimeError(f"{stored} orders are stored, the run counted {load.orders}")
    return load


def _start(stack: BenchStack, running: ExitStack, environment: dict[str, str], *services: str) -> list[Replica]:
    started = running.enter_context(stack.services(environment, **dict.fromkeys(services, 1)))
    return [replica for each in started.values() for replica in each]


def _measure(orders: int, *, kill: bool) -> Load:
    simulator = ["--sellers", "1", "--orders", str(orders), "--history-days", "300", *NO_LIMITS]
    environment = {**_UNLIMITED, "KAFKA_SESSION_TIMEOUT_SECONDS": "6", "POLLER_WINDOW_REDELIVERY_SECONDS": "10"}
    with bench_stack(simulator, environment) as stack:
        load = uvloop.run(_load(stack, kill_at=orders // 2 if kill else None))
    held = ", ".join(f"{service} {peak / 2**20:.0f} MiB" for service, peak in load.peaks.items())
    say(f"{load.orders} orders in {load.seconds:.0f} s; peaks: {held}")
    return load


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; 0 only if the goals are met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk_load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--orders", type=int, default=100_000)
    plan = parser.parse_args(arguments)
    small = _measure(plan.orders // 10, kill=False)
    large = _measure(plan.orders, kill=True)
    measures = []
    for service in _SERVICES:
        held, reference = large.peaks[service] / 2**20, small.peaks[service] / 2**20
        name = f"bulk-load: memory of the {service}, {plan.orders} orders against {plan.orders // 10}"
        measures.append(Measure(name, held, "MiB", reference, reference / held, _GOAL))
    return 0 if report(measures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
