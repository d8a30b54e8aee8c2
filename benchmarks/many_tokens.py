"""What ten thousand sellers cost the poller while nothing happens: leasing their schedules, asking, noting empty looks.

The poller as a process, keeping to Allegro's limits, against the simulated Allegro with every journal empty. Connecting
ten thousand sellers would take longer than everything else, so each simulated seller is connected under a hundred
names: to the product these are sellers of their own, with a schedule, a cursor and a sealed token each.

What the requests themselves cost is measured afterwards, with the product's own client and the same tokens: the rest is
leasing and book-keeping.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle, islice

import asyncpg
import httpx
import psutil

from benchmarks.stack import BenchStack, Replica, Seller, give_schedules, say

INTERVAL_SECONDS = 180
_NAMES_OF_A_SELLER = 100
# What starting leaves behind is not part of it.
_SETTLING_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_REQUESTS = 2000
_REQUESTS_AT_A_TIME = 8
_EMPTY = re.compile(r'orders_backup_journal_polls_total\{outcome="empty"\} (\S+)')
_POLLS = re.compile(r'orders_backup_journal_polls_total\{outcome="(?!empty)\w+"\} (\S+)')
_ROWS = "SELECT coalesce(sum(n_tup_ins), 0)::bigint FROM pg_stat_user_tables"
# A schedule keeps its time until its look is noted: this is how long the latest one waits, its look included.
_LATENESS = "SELECT coalesce(extract(epoch FROM now() - min(next_run)), 0)::float FROM active_sync_schedules"


@dataclass(frozen=True)
class Round:
    """What looking into every journal took, a part of an interval long."""

    tokens: int
    seconds: float
    looks: float
    cpu_seconds: float
    """Of the poller."""
    postgres_cpu_seconds: float
    rows: int
    """Inserted into any table."""
    latest_seconds: float
    memory_bytes: int

    @property
    def looks_a_second(self) -> float:
        return self.looks / self.seconds

    @property
    def cores(self) -> float:
        """Of the poller and PostgreSQL, the requests included."""
        return (self.cpu_seconds + self.postgres_cpu_seconds) / self.seconds


def simulated_sellers(tokens: int) -> int:
    """How many sellers Allegro has to have for so many tokens."""
    return -(-tokens // _NAMES_OF_A_SELLER)


async def look_into(stack: BenchStack, tokens: int, seconds: float) -> tuple[Round, float]:
    """Connect so many sellers and watch the poller for so long; then the CPU seconds of one request."""
    async with stack.pool() as pool:
        names = min(tokens, _NAMES_OF_A_SELLER)
        sellers = await stack.connect_sellers(pool, simulated_sellers(tokens), names=names)
        # Their names are known: else the poller would ask for each of them once.
        await pool.execute("UPDATE user_tokens SET login_after = NULL")
        say(f"{len(sellers)} sellers are connected")
        with stack.services(stack.environment(), poller=1) as services:
            (poller,) = services["poller"]
            await give_schedules(
                pool, sellers, interval_seconds=INTERVAL_SECONDS, spread=timedelta(seconds=INTERVAL_SECONDS)
            )
            for table in ("user_tokens", "journal_cursors", "active_sync_schedules"):
                await pool.execute(f"VACUUM ANALYZE {table}")
            await asyncio.sleep(_SETTLING_SECONDS)
            found = await _watch(pool, stack, poller, len(sellers), seconds)
        return found, await _request(pool, stack, sellers)


async def _request(pool: asyncpg.Pool, stack: BenchStack, sellers: Sequence[Seller]) -> float:
    """CPU seconds of one look into an empty journal without anything around it: ours and PostgreSQL's."""
    waiting = iter(list(islice(cycle(sellers), _REQUESTS)))
    position = await pool.fetchval("SELECT min(stored_event_id) FROM journal_cursors")
    async with stack.allegro(pool) as allegro:
        cpu = time.process_time() + _postgres_seconds(stack.postgres_pid)

        async def ask() -> None:
            for seller in waiting:
                await allegro.client.events(seller.token_id, after=position, limit=1000, traffic="live")

        await asyncio.gather(*(ask() for _ in range(_REQUESTS_AT_A_TIME)))
        return (time.process_time() + _postgres_seconds(stack.postgres_pid) - cpu) / _REQUESTS


async def _watch(pool: asyncpg.Pool, stack: BenchStack, poller: Replica, tokens: int, seconds: float) -> Round:
    rows = await _rows(pool)
    looks, cpu, postgres = await _looks(poller), poller.cpu_seconds(), _postgres_seconds(stack.postgres_pid)
    began = time.monotonic()
    latest, memory = 0.0, 0
    while time.monotonic() - began < seconds:
        latest = max(latest, await pool.fetchval(_LATENESS))
        memory = max(memory, poller.memory_bytes())
        await asyncio.sleep(_LOOK_SECONDS)
    return Round(
        tokens=tokens,
        seconds=time.monotonic() - began,
        looks=await _looks(poller) - looks,
        cpu_seconds=poller.cpu_seconds() - cpu,
        postgres_cpu_seconds=_postgres_seconds(stack.postgres_pid) - postgres,
        rows=await _rows(pool) - rows,
        latest_seconds=latest,
        memory_bytes=memory,
    )


async def _looks(poller: Replica) -> float:
    """Empty looks so far; raises RuntimeError if there were others."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{poller.port}/metrics")).raise_for_status().text
    if any(float(number) for number in _POLLS.findall(text)):
        raise RuntimeError(f"not every look was empty: {_POLLS.findall(text)}")
    return sum(map(float, _EMPTY.findall(text)))


def _postgres_seconds(pid: int) -> float:
    """Of the server with its backends, those that have ended included."""
    server = psutil.Process(pid)
    ended = server.cpu_times()
    total = ended.user + ended.system + ended.children_user + ended.children_system
    for child in server.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system
    return float(total)


async def _rows(pool: asyncpg.Pool) -> int:
    """Statistics of a backend are shared when it has been idle for a moment."""
    await asyncio.sleep(1.5)
    count: int = await pool.fetchval(_ROWS)
    return count
