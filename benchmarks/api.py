"""How fast does the API read? `make bench-api`

A table of 1,000,000 orders of 200 sellers, half of them of one. The lists and the single orders of the API beside a
minimal Starlette application that runs the same SQL and answers with the same bytes, in turn and in the same run; how
long answers take at half of the highest rate; the ten-thousandth page beside the first; an export of all orders beside
`COPY ... TO STDOUT` of the same rows; and what an export in each format does to the memory of the API's process.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import asyncpg
import uvloop

from benchmarks.http_load import Load, body_of, drain
from benchmarks.report import Measure, report
from benchmarks.stack import BenchStack, Replica, bench_stack, say
from benchmarks.table import fill
from devstack.ports import free_port, release
from devstack.processes import Child
from services.api.cursor import Position
from services.api.export.forms import FORMS, NDJSON
from shared.export.columns import SUMMARY

_SELLERS = 200
_PAGE = 50
_CONNECTIONS = 16
_ROUNDS = 3
_GOAL_OF_REFERENCE = 0.6
_GOAL_SECONDS = 0.050
_GOAL_OF_PAGES = 1 / 1.2
_GOAL_OF_COPY = 0.5
_GOAL_STATISTICS_SECONDS = 1.0
_GOAL_BYTES = 50e6
_LOOK_SECONDS = 0.1
# Every second order is the first seller's, the others share the rest.
_TOKEN_OF = f"CASE WHEN n % 2 = 0 THEN 1 ELSE 2 + (n / 2) % {_SELLERS - 1} END"


@dataclass(frozen=True)
class Size:
    """How much is measured, and for how long."""

    orders: int
    seconds: float


async def _fill(pool: asyncpg.Pool, orders: int) -> None:
    await pool.executemany(
        "INSERT INTO user_tokens (user_id) VALUES ($1)", [(f"shop-{number}",) for number in range(1, _SELLERS + 1)]
    )
    async with pool.acquire() as connection:
        await fill(connection, orders, token_of=_TOKEN_OF)
        await connection.execute("VACUUM ANALYZE", timeout=1800)


async def _compared(ours: Load, theirs: Load, seconds: float) -> tuple[float, float]:
    """Answers a second of both, in turn: the medians."""
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(_ROUNDS):
        rates["theirs"].append(await theirs.most(seconds))
        rates["ours"].append(await ours.most(seconds))
    return statistics.median(rates["ours"]), statistics.median(rates["theirs"])


async def _reading(name: str, url: str, reference: str, paths: Sequence[str], seconds: float) -> list[Measure]:
    for path in paths[:5]:
        if await body_of(url, path) != await body_of(reference, path):
            raise RuntimeError(f"the reference answers {path} with other bytes: it measures something else")
    load = Load(url, paths, _CONNECTIONS)
    ours, theirs = await _compared(load, Load(reference, paths, _CONNECTIONS), seconds)
    say(f"{name}: {ours:.0f}/s, the reference {theirs:.0f}/s")
    taken = await load.times(ours / 2, seconds * 2)
    slow = taken[int(len(taken) * 0.99)]
    say(f"{name} at {ours / 2:.0f}/s: median {taken[len(taken) // 2] * 1000:.1f} ms, p99 {slow * 1000:.1f} ms")
    return [
        Measure(f"api.{name}-vs-starlette", ours, "requests/s", theirs, ours / theirs, _GOAL_OF_REFERENCE),
        Measure(f"api.{name}-p99-at-half", slow * 1000, "ms", _GOAL_SECONDS * 1000, _GOAL_SECONDS / slow, 1.0),
    ]


async def _pages(pool: asyncpg.Pool, url: str, seconds: float, orders: int) -> Measure:
    """The page that begins in the middle of a large seller's orders, the ten-thousandth at full size, and the first."""
    skipped = min(10_000 * _PAGE, orders // 2) - _PAGE - 1
    row = await pool.fetchrow(
        "SELECT bought_at, id FROM orders WHERE user_token_id = 1 ORDER BY bought_at DESC, id DESC OFFSET $1 LIMIT 1",
        skipped,
    )
    cursor = Position("orders:-bought_at", row["bought_at"], str(row["id"])).encode()
    path = "/api/v1/orders/shop-1"
    deep, first = await _compared(
        Load(url, [f"{path}?cursor={cursor}"], 1), Load(url, [f"{path}?limit={_PAGE}"], 1), seconds
    )
    say(f"first page {1000 / first:.2f} ms, page {skipped // _PAGE + 2} {1000 / deep:.2f} ms")
    return Measure("api.page-10000-vs-first", 1000 / deep, "ms", 1000 / first, deep / first, _GOAL_OF_PAGES)


async def _statistics(url: str, seconds: float) -> Measure:
    """Of all orders, one question at a time."""
    took = 1 / await Load(url, ["/api/v1/statistics"], 1).most(seconds)
    say(f"statistics of all orders: {took * 1000:.0f} ms")
    return Measure(
        "api.statistics", took * 1000, "ms", _GOAL_STATISTICS_SECONDS * 1000, _GOAL_STATISTICS_SECONDS / took, 1.0
    )


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _copied(pool: asyncpg.Pool) -> None:
    """The columns that a line of NDJSON has, to nowhere."""

    async def nowhere(_piece: bytes) -> None:
        return

    columns = ", ".join(column for column in NDJSON.columns)
    assert len(NDJSON.columns) == len(SUMMARY) + 1  # noqa: S101 - the user's name stands in another table
    async with pool.acquire() as connection:
        await connection.copy_from_query(
            f"SELECT user_token_id, {columns} FROM orders ORDER BY id",  # noqa: S608 - names of columns
            output=nowhere,
            timeout=1800,
        )


async def _exporting(pool: asyncpg.Pool, api: Replica, url: str, orders: int) -> list[Measure]:
    # What a format needs is loaded when it is asked for first, once in the life of the process: pyarrow, for one.
    bare = api.memory_bytes()
    for form in FORMS:
        await drain(url, f"/api/v1/exports/orders?format={form}&limit=1")
    before = api.memory_bytes()
    say(f"{bare / 1e6:.0f} MB before any export, {(before - bare) / 1e6:.1f} MB more with every format's code loaded")
    copied = [await _timed(lambda: _copied(pool))]
    exported, peak = await _exported(api, url, NDJSON.name)
    copied.append(await _timed(lambda: _copied(pool)))
    ours, theirs = orders / exported, orders / statistics.mean(copied)
    say(f"export: {ours:.0f} orders/s, COPY {theirs:.0f}/s")
    peaks = {NDJSON.name: peak}
    for form in (name for name in FORMS if name not in peaks):
        exported, peaks[form] = await _exported(api, url, form)
        say(f"export as {form}: {orders / exported:.0f} orders/s")
    return [
        Measure("api.export-vs-copy", ours, "orders/s", theirs, ours / theirs, _GOAL_OF_COPY),
        *(_memory(form, before, peak) for form, peak in peaks.items()),
    ]


async def _exported(api: Replica, url: str, form: str) -> tuple[float, int]:
    """Seconds that an export of all orders takes, and the most memory that the API's process held meanwhile."""
    peak = 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, api.memory_bytes())
            await asyncio.sleep(_LOOK_SECONDS)

    looking = asyncio.create_task(look())
    seconds = await _timed(lambda: drain(url, f"/api/v1/exports/orders?format={form}"))
    looking.cancel()
    return seconds, peak


def _memory(form: str, before: int, peak: int) -> Measure:
    """More than before the first whole export: what an earlier one left behind counts as well."""
    grown = max(peak - before, 1)
    say(f"export as {form}: {before / 1e6:.0f} MB before, {grown / 1e6:.1f} MB more")
    return Measure(f"api.export-memory-{form}", grown / 1e6, "MB", _GOAL_BYTES / 1e6, _GOAL_BYTES / grown, 1.0)


async def _measure(stack: BenchStack, api: Replica, reference: str, size: Size) -> list[Measure]:
    url = f"http://127.0.0.1:{api.port}"
    async with stack.pool() as pool:
        say(f"filling {size.orders} orders of {_SELLERS} sellers")
        await _fill(pool, size.orders)
        lists = [f"/api/v1/orders/shop-{number}" for number in range(1, _SELLERS + 1)]
        picked = await pool.fetch(
            "SELECT t.user_id, o.allegro_order_id FROM orders o TABLESAMPLE SYSTEM (1)"
            " JOIN user_tokens t ON t.id = o.user_token_id LIMIT 2000"
        )
        ones = [f"/api/v1/orders/{row['user_id']}/{row['allegro_order_id']}" for row in picked]
        return [
            *await _reading("list", url, reference, lists, size.seconds),
            *await _reading("order", url, reference, ones, size.seconds),
            await _pages(pool, url, size.seconds, size.orders),
            await _statistics(url, size.seconds),
            *await _exporting(pool, api, url, size.orders),
        ]


def _run(size: Size) -> list[Measure]:
    with bench_stack((), {}) as stack:
        port = free_port()
        reference = Child(
            "reference",
            [sys.executable, "-m", "benchmarks.reference_api", str(port)],
            log=stack.folder / "reference.out",
            env=stack.environment(),
            grace_seconds=30,
        )
        reference.start()
        try:
            reference.wait_until_http(f"http://127.0.0.1:{port}/readyz", 60)
            with stack.services(stack.environment(), api=1) as running:
                (api,) = running["api"]
                return uvloop.run(_measure(stack, api, f"http://127.0.0.1:{port}", size))
        finally:
            reference.kill()
            release(port)


def main() -> None:
    """Run the benchmark; the exit code is 0 only if the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1_000_000, help="orders in the table")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measure")
    options = parser.parse_args()
    sys.exit(0 if report(_run(Size(options.orders, options.seconds))) else 1)


if __name__ == "__main__":
    main()
